"""Language modelling by diffusion: text from nothing, from a prefix, or into gaps."""

import logging
from dataclasses import dataclass, field
from typing import Optional

import torch
from fairseq.data import TokenBlockDataset
from fairseq.tasks import register_task
from omegaconf import II
from torch import Tensor

from diffusion_fairseq.data.cut_dataset import CutDataset
from diffusion_fairseq.data.prompt_dataset import PromptDataset, lengthened
from diffusion_fairseq.data.typed_lines import without_lone_spaces
from diffusion_fairseq.errors import UserError, one_of
from diffusion_fairseq.tasks.monolingual import MonolingualTask
from diffusion_fairseq.tasks.seq2seq_diffusion import Seq2SeqDiffusionConfig
from diffusion_fairseq.text.masking import MASKING, GivenPositions, Law

logger = logging.getLogger(__name__)
BREAK_MODES = ("eos", "none")


@dataclass
class DiffusionLMTaskConfig(Seq2SeqDiffusionConfig):
    """Texts, and which of their positions are noised."""

    tokens_per_sample: int = field(
        default=64, metadata={"help": "longest sequence in tokens, its end of sentence counted"}
    )
    sample_break_mode: str = field(
        default="eos",
        metadata={"help": "what a sequence is: eos (a line; longer ones are cut, with a warning) or none (blocks of "
                          "--tokens-per-sample tokens, whatever the lines)"},
    )
    masking: str = field(
        default="full",
        metadata={"help": f"which positions are noised in training and validation: {', '.join(MASKING)}; the others "
                          "are given, clean, to a model with --given-tokens clean"},
    )
    given_positions: Optional[str] = field(
        default=None,
        metadata={"help": "in generation the positions of each line that are given, in place of --masking: slices such "
                          "as 0:32 (a prefix) or 0:16,48:64 (text is written between), or none"},
    )
    prompt_length: Optional[int] = field(
        default=None,
        metadata={"help": "in generation write so many positions for every line, in place of as many as it has; in "
                          "fairseq-interactive the length to which a line without mask tokens is continued (default "
                          "there: --tokens-per-sample)"},
    )
    max_source_positions: int = II("task.tokens_per_sample")
    max_target_positions: int = II("task.tokens_per_sample")


@register_task("diffusion_lm", dataclass=DiffusionLMTaskConfig)
class DiffusionLMTask(MonolingualTask):
    """Train, validate and generate with a diffusion language model on text that fairseq-preprocess --only-source has
    binarised."""

    cfg: DiffusionLMTaskConfig
    prompts = True
    # Whether a model is trained here: the prompts of its training text follow --masking.
    trains = True

    @classmethod
    def check_options(cls, cfg: DiffusionLMTaskConfig) -> str:
        folder = super().check_options(cfg)
        for name, known in (("sample_break_mode", BREAK_MODES), ("masking", tuple(MASKING))):
            one_of(f"--{name.replace('_', '-')}", cfg[name], known)
        if cfg.tokens_per_sample < 2:
            raise UserError(f"--tokens-per-sample must be at least 2, got {cfg.tokens_per_sample}")
        if cfg.prompt_length is not None and not 2 <= cfg.prompt_length <= cfg.tokens_per_sample:
            raise UserError(f"--prompt-length must be from 2 to --tokens-per-sample ({cfg.tokens_per_sample}), got "
                            f"{cfg.prompt_length}")
        if cfg.eval_rouge or cfg.eval_bleu:
            raise UserError("--eval-rouge and --eval-bleu compare with a reference, which a language model's text does "
                            "not have: leave them out")
        given_positions(cfg)
        return folder

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs) -> None:
        """Load a split of one shard.

        Raises:
            UserError: there is no such split, or it is no text.
        """
        cfg, dictionary = self.cfg, self.src_dict
        path, lines = self.load_lines(split, epoch, combine)
        if cfg.sample_break_mode == "eos":
            texts = CutDataset(lines, lines.sizes, cfg.tokens_per_sample)
            if texts.num_cut:
                logger.warning(f"{path}: {texts.num_cut} of {len(texts)} lines cut to {cfg.tokens_per_sample} tokens "
                               "(--tokens-per-sample)")
        else:
            texts = TokenBlockDataset(lines, lines.sizes, cfg.tokens_per_sample, pad=dictionary.pad(),
                                      eos=dictionary.eos(), break_mode="none")
        training = self.trains and split == cfg.train_subset
        self.datasets[split] = PromptDataset(
            texts, texts.sizes, dictionary, self.mask, MASKING[cfg.masking] if training else self.law(), seed=cfg.seed,
            length=None if training else cfg.prompt_length, ends=self.ends, shuffle=split != "test",
            left_pad_source=False, num_buckets=cfg.num_batch_buckets, pad_to_multiple=cfg.required_seq_len_multiple,
        )
        logger.info(f"{path}: {len(texts):,} sequences of at most {texts.sizes.max()} tokens")

    def build_model(self, cfg, from_checkpoint: bool = False):
        """As for a source and a target; sequences are cut to what the model takes.

        Raises:
            UserError: cfg names a model of another kind, or prompts would be longer than it takes.
        """
        model = super().build_model(cfg, from_checkpoint)
        self.trains = not from_checkpoint
        self.cfg.tokens_per_sample = longest = min(self.cfg.tokens_per_sample, *model.max_positions())
        if (self.cfg.prompt_length or 0) > longest:
            raise UserError(f"--prompt-length {self.cfg.prompt_length} exceeds the {longest} positions of the model")
        if self.trains and model.noises_given != (self.cfg.masking == "full"):
            # A DDLM, which has no such option, sees given tokens clean.
            seen = "--given-tokens clean" if "given_tokens" in cfg else "a DDLM"
            logger.warning(
                f"--masking {self.cfg.masking} shapes validation only: with --given-tokens noised all positions are "
                "noised in training" if model.noises_given else
                f"{seen} never sees a given token with --masking full: choose another --masking for text after or "
                "between what is given"
            )
        return model

    @property
    def ends(self) -> bool:
        """Whether a sequence ends in eos."""
        return self.cfg.sample_break_mode == "eos"

    def law(self) -> Law:
        """Which positions of a sequence are noised where the model does not learn from it."""
        return given_positions(self.cfg) or MASKING[self.cfg.masking]

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None) -> PromptDataset:
        """Typed lines as prompts, for fairseq-interactive: those without a mask token are continued."""
        cfg = self.cfg
        self.check_typed(src_tokens)
        if cfg.given_positions is not None:
            raise UserError("--given-positions is of the texts of a split: put a mask token into what is typed "
                            "wherever one is to be written")
        src_tokens = [without_lone_spaces(tokens, self.src_dict, self.mask) for tokens in src_tokens]
        prompts = [self.cut_prompt(tokens) if (tokens == self.mask).any() else self.begun(tokens[:-1])
                   for tokens in src_tokens]
        found = PromptDataset(prompts, [len(prompt) for prompt in prompts], self.src_dict, self.mask,
                              GivenPositions(":"), seed=cfg.seed, shuffle=False, left_pad_source=False)
        found.tgt = found.tgt_sizes = None
        return found

    def begun(self, words: Tensor) -> Tensor:
        """The prompt that is continued after the words (n,) of a line without a mask token."""
        option = "--tokens-per-sample" if self.cfg.prompt_length is None else "--prompt-length"
        length = self.cfg.prompt_length or self.cfg.tokens_per_sample
        if len(words) >= length - self.ends:
            logger.warning(f"input: a line of {len(words)} tokens fills {length} ({option}), and nothing is left to "
                           "write")
        return lengthened(words, length, self.mask, self.src_dict.eos() if self.ends else None)

    def cut_prompt(self, prompt: Tensor) -> Tensor:
        """A prompt (n,) of at most --tokens-per-sample tokens; an end of sentence stays its last one."""
        longest = self.cfg.tokens_per_sample
        if len(prompt) <= longest:
            return prompt
        kept = torch.cat([prompt[: longest - 1], prompt[-1:]]) if self.ends else prompt[:longest]
        left = "" if (kept == self.mask).any() else ", and nothing is left to write"
        logger.warning(f"input: a line of {len(prompt)} tokens cut to {longest} (--tokens-per-sample){left}")
        return kept

    def eval_lm_dataloader(self, *args, **kwargs):
        """What fairseq-eval-lm asks for.

        Raises:
            UserError: always: there are no probabilities from left to right.
        """
        raise UserError("fairseq-eval-lm scores from left to right, which a diffusion model does not: scripts/"
                        "evaluate_bound.py, or fairseq-validate --eval-bound 1, gives a bound on the likelihood")

    def valid_step(self, sample, model, criterion):
        if sample["target"] is None:
            raise UserError("--prompt-length makes prompts without references, from which no loss can be computed: "
                            "give it to fairseq-generate only")
        return super().valid_step(sample, model, criterion)


def given_positions(cfg: DiffusionLMTaskConfig) -> Optional[GivenPositions]:
    """What --given-positions says.

    Raises:
        UserError: it says no positions.
    """
    if cfg.given_positions is None:
        return None
    try:
        return GivenPositions(cfg.given_positions)
    except ValueError as error:
        raise UserError(f"--given-positions: {error}") from error
