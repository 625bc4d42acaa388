"""Pre-training by continuous paragraph denoising (GENIE, section 3.1), on binarised documents."""

import logging
from dataclasses import dataclass, field

import numpy as np
from fairseq.tasks import register_task

from diffusion_fairseq.data.cpd_dataset import DOCUMENT_BREAKS, CPDDataset, example_sizes, split_documents
from diffusion_fairseq.errors import UserError, one_of
from diffusion_fairseq.tasks.monolingual import MonolingualTask
from diffusion_fairseq.tasks.seq2seq_diffusion import Seq2SeqDiffusionConfig

logger = logging.getLogger(__name__)


@dataclass
class CPDPretrainConfig(Seq2SeqDiffusionConfig):
    """Documents, and what is left out of them."""

    max_target_positions: int = field(
        default=154, metadata={"help": "longest paragraph in tokens, its end of sentence counted"}
    )
    tokens_per_sample: int = field(
        default=512,
        metadata={"help": "longest document in tokens, without ends of sentence; longer ones become several"},
    )
    document_break: str = field(
        default="line",
        metadata={"help": f"where documents end: {' or '.join(DOCUMENT_BREAKS)}. line: each line is one; blank: at "
                          "empty lines (between chapters, say), the lines between being sentences, packed whole"},
    )
    paragraph_ratio: float = field(
        default=0.3,
        metadata={"help": "share of a document's tokens that one mask token replaces, and that is the target"},
    )
    min_document_tokens: int = field(
        default=30, metadata={"help": "shorter documents are left out, and counted in the log"}
    )


@register_task("cpd_pretrain", dataclass=CPDPretrainConfig)
class CPDPretrainTask(MonolingualTask):
    """Train, validate and generate with a diffusion model that fills a paragraph into a document."""

    cfg: CPDPretrainConfig

    @classmethod
    def check_options(cls, cfg: CPDPretrainConfig) -> str:
        folder = super().check_options(cfg)
        one_of("--document-break", cfg.document_break, DOCUMENT_BREAKS)
        if not 0 < cfg.paragraph_ratio < 1:
            raise UserError(f"--paragraph-ratio must be between 0 and 1, got {cfg.paragraph_ratio}")
        for name in ("tokens_per_sample", "min_document_tokens"):
            if cfg[name] < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {cfg[name]}")
        return folder

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs) -> None:
        """Load a split of one shard: its documents, and the examples they make.

        Raises:
            UserError: there is no such split, it is no text, or none of its documents is long enough.
        """
        cfg, dictionary = self.cfg, self.src_dict
        path, lines = self.load_lines(split, epoch, combine)
        documents = split_documents(lines, lines.sizes, self.longest_document(), cfg.document_break, dictionary)
        examples = CPDDataset(
            documents, dictionary, self.mask, seed=cfg.seed, ratio=cfg.paragraph_ratio,
            min_tokens=cfg.min_document_tokens, shuffle=split != "test", left_pad_source=cfg.left_pad_source,
            num_buckets=cfg.num_batch_buckets, pad_to_multiple=cfg.required_seq_len_multiple,
        )
        counted = (f"{examples.num_short:,} of {examples.num_documents:,} documents left out: fewer than "
                   f"{cfg.min_document_tokens} tokens (--min-document-tokens)")
        if not len(examples):
            raise UserError(f"{path}: {counted}")
        logger.info(f"{path}: {len(examples):,} documents of at most {documents.sizes.max()} tokens; {counted}")
        self.datasets[split] = examples

    def longest_document(self) -> int:
        """Tokens of the longest document whose source and target both fit the model.

        Raises:
            UserError: not even a short one does.
        """
        cfg = self.cfg
        lengths = np.arange(1, cfg.tokens_per_sample + 1)
        source, target = example_sizes(lengths, cfg.paragraph_ratio)
        longest = int(((source <= cfg.max_source_positions) & (target <= cfg.max_target_positions)).sum())
        if longest < cfg.min_document_tokens:
            raise UserError(f"documents of {cfg.min_document_tokens} tokens (--min-document-tokens) do not fit: raise "
                            "--tokens-per-sample, --max-source-positions or --max-target-positions")
        if longest < cfg.tokens_per_sample:
            logger.warning(f"documents cut to {longest} tokens, not {cfg.tokens_per_sample} (--tokens-per-sample): no "
                           "more fit --max-source-positions and --max-target-positions")
        return longest
