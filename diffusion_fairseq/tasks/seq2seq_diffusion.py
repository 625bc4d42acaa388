"""Sequence-to-sequence generation by diffusion, on fairseq's binarised pairs."""

import atexit
import logging
import os
import sys
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional

from fairseq import utils
from fairseq.criterions import CRITERION_REGISTRY
from fairseq.data import Dictionary, LanguagePairDataset, data_utils
from fairseq.dataclass.configs import GenerationConfig
from fairseq.logging import metrics
from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import FairseqTask, register_task
from fairseq.tasks.translation import EVAL_BLEU_ORDER, TranslationConfig, TranslationTask, load_langpair_dataset
from omegaconf import II, MissingMandatoryValue, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from sacrebleu.metrics import BLEU

from diffusion_fairseq.criterions.base import DiffusionCriterion
from diffusion_fairseq.data.cut_dataset import CutDataset
from diffusion_fairseq.data.filler import is_filler
from diffusion_fairseq.data.typed_lines import warn_of_unknown_words
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.models.base import DiffusionModel
from diffusion_fairseq.models.compilation import compile_layers
from diffusion_fairseq.models.persistence import fingerprint
from diffusion_fairseq.tasks.eval_bound import EvalBoundConfig, bound_sums, check_eval_bound, log_bound
from diffusion_fairseq.tasks.eval_rouge import EvalRouge, EvalRougeConfig, check_eval_bleu, log_rouge
from diffusion_fairseq.tasks.resumption import left_to_generate
from diffusion_fairseq.tasks.sampling_config import SamplingConfig, check_sampling
from diffusion_fairseq.tasks.updates import SharedUpdates

logger = logging.getLogger(__name__)

# What scripts/binarise.py calls the two sides.
PAIR = ("src", "tgt")
# Share of a dictionary's words that may be missing from a sentencepiece model: rare characters outside its alphabet.
UNKNOWN_PIECES = 0.1
# Options of fairseq's generation from left to right, which would change nothing here.
UNSERVED = ("sampling", "sampling_topk", "sampling_topp", "score_reference", "prefix_size", "constraints",
            "print_alignment", "replace_unk", "lm_path", "no_repeat_ngram_size", "diverse_beam_groups",
            "match_source_len", "beam", "temperature", "lenpen", "unkpen", "unnormalized", "min_len", "diversity_rate",
            "no_early_stop", "lm_weight", "decoding_format", "eos_token", "retain_dropout", "retain_dropout_modules",
            "iter_decode_max_iter", "iter_decode_eos_penalty", "iter_decode_force_max_iter", "iter_decode_with_beam",
            "iter_decode_with_external_reranker")
INSTEAD = {"beam": "--candidates", "temperature": "--score-temperature", "iter_decode_max_iter": "--diffusion-steps",
           "iter_decode_with_beam": "--length-beam"}
# What validation with --eval-bleu sums over batches and workers.
BLEU_COUNTS = [f"_bleu_counts_{n}" for n in range(EVAL_BLEU_ORDER)]
BLEU_TOTALS = [f"_bleu_totals_{n}" for n in range(EVAL_BLEU_ORDER)]
BLEU_LENGTHS = ["_bleu_sys_len", "_bleu_ref_len"]


@dataclass
class Seq2SeqDiffusionConfig(SamplingConfig, EvalRougeConfig, EvalBoundConfig, TranslationConfig):
    """fairseq's translation data, cut to the model's positions; the options of sampling and of validation by it."""

    left_pad_source: bool = field(default=False, metadata={"help": "pad the source on the left"})
    max_source_positions: int = field(
        default=512, metadata={"help": "longest source in tokens; longer ones are cut, with a warning"}
    )
    max_target_positions: int = field(
        default=64, metadata={"help": "longest target in tokens; longer ones are cut, with a warning"}
    )
    compile_layers: bool = field(
        default=False,
        metadata={"help": "compile the transformer layers with torch.compile, in training and generation: pays on "
                          "GPUs in runs of more than some minutes, little on CPUs; without a working compiler "
                          "one warning, and the layers stay as they are"},
    )
    resume_generation: Optional[str] = field(
        default=None,
        metadata={"help": "output of a generation with the same options that was interrupted, or an empty file: the "
                          "batches it holds are not generated again, and it is cut where the first of the others "
                          "begins. Append to it: fairseq-generate ... --resume-generation out.txt >> out.txt can be "
                          "started again as it is; the score at its end is then of the rest alone "
                          "(scripts/evaluate.py scores the file). Not the file in --results-path, which is emptied at "
                          "every start"},
    )
    num_shards: int = II("dataset.num_shards")
    shard_id: int = II("dataset.shard_id")


@register_task("seq2seq_diffusion", dataclass=Seq2SeqDiffusionConfig)
class Seq2SeqDiffusionTask(SharedUpdates, TranslationTask):
    """Train, validate and generate with a diffusion model on pairs that fairseq-preprocess has binarised."""

    cfg: Seq2SeqDiffusionConfig
    # Whether sources are prompts, as a model's attribute of that name says.
    prompts = False
    # Whether a text ends at its end of sentence, as against blocks of running text.
    ends = True
    # Whether losses are computed, for which there must be targets.
    scores = False

    @classmethod
    def check_options(cls, cfg: Seq2SeqDiffusionConfig) -> str:
        """The first data folder, which holds the dictionaries.

        Raises:
            UserError: no data, or an option that is out of range or without use.
        """
        check_sampling(cfg)
        check_eval_bound(cfg)
        for name in ("max_source_positions", "max_target_positions"):
            if cfg[name] < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, got {cfg[name]}")
        for name in ("truncate_source", "load_alignments", "left_pad_target"):
            if cfg[name]:
                raise UserError(f"--{name.replace('_', '-')} has no use here (sources and targets are always cut to "
                                "fit, targets padded on the right): leave it out")
        folder = utils.split_paths(cfg.data)[0]
        if not os.path.isdir(folder):
            raise UserError(f"no such data folder: {folder}; make it with fairseq-preprocess")
        return folder

    @classmethod
    def setup_task(cls, cfg: Seq2SeqDiffusionConfig, **kwargs):
        """Load the dictionaries.

        Raises:
            UserError: no data, no dictionary, or a sampling option out of range.
        """
        folder = cls.check_options(cfg)
        if cfg.source_lang is None or cfg.target_lang is None:
            cfg.source_lang, cfg.target_lang = data_utils.infer_language_pair(folder)
            dictionaries = [os.path.join(folder, f"dict.{side}.txt") for side in PAIR]
            if cfg.source_lang is None and all(map(os.path.exists, dictionaries)):
                cfg.source_lang, cfg.target_lang = PAIR  # dictionaries without pairs, as beside a model that ships
        if cfg.source_lang is None or cfg.target_lang is None:
            inside = os.path.join(folder, "data-bin")
            remedy = f"did you mean {inside}?" if os.path.isdir(inside) else \
                "give --source-lang and --target-lang, or binarise the data with fairseq-preprocess"
            raise UserError(f"{folder} holds no pair of languages: {remedy}")
        return super().setup_task(cfg, **kwargs)

    @classmethod
    def load_dictionary(cls, filename: str) -> Dictionary:
        """Load a dictionary.

        Raises:
            UserError: the file is missing or is no dictionary.
        """
        if not os.path.isfile(filename):
            raise UserError(f"no dictionary {filename}: run fairseq-preprocess, or copy the dictionary the model was "
                            "trained with to that place")
        dictionary = super().load_dictionary(filename)
        if len(dictionary) == dictionary.nspecial:
            raise UserError(f"{filename} holds no word: binarise the text again with fairseq-preprocess")
        return dictionary

    def data_folder(self, split: str, epoch: int) -> str:
        """Where a split lies: training takes the folders of `data` in turn, epoch by epoch."""
        paths = utils.split_paths(self.cfg.data)
        return paths[(epoch - 1) % len(paths)] if split == self.cfg.train_subset else paths[0]

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs) -> None:
        """Load a split, its sources and targets cut to the longest that fit."""
        cfg = self.cfg
        path = self.data_folder(split, epoch)
        try:
            pairs = load_langpair_dataset(
                path, split, cfg.source_lang, self.src_dict, cfg.target_lang, self.tgt_dict, combine=combine,
                dataset_impl=cfg.dataset_impl, upsample_primary=cfg.upsample_primary, left_pad_source=False,
                left_pad_target=False, max_source_positions=cfg.max_source_positions,
                max_target_positions=cfg.max_target_positions,
            )
        except FileNotFoundError as error:
            raise UserError(f"{path} holds no {split}.{cfg.source_lang}-{cfg.target_lang}: binarise that split with "
                            f"fairseq-preprocess, or choose another one ({error})") from error
        except AssertionError as error:
            where = f"{os.path.join(path, split)}.{cfg.source_lang}-{cfg.target_lang}"
            if cfg.dataset_impl is not None:
                raise UserError(f"{where} cannot be read with --dataset-impl {cfg.dataset_impl}: leave "
                                "it out") from error
            # All that the host checks where it chooses the reader itself.
            raise UserError(f"{where}: not as many sources as targets; binarise both again, from two files of as many "
                            "lines") from error
        if pairs.tgt is None and self.scores:
            raise UserError(f"{path} holds no targets for {split} ({split}.{cfg.source_lang}-{cfg.target_lang}."
                            f"{cfg.target_lang}.idx), without which there is no loss: binarise both sides")
        self.datasets[split] = self._cut(pairs, split, num_buckets=cfg.num_batch_buckets, shuffle=split != "test")

    def _cut(self, pairs: LanguagePairDataset, name: str, **options) -> LanguagePairDataset:
        cfg = self.cfg
        src = CutDataset(pairs.src, pairs.src_sizes, cfg.max_source_positions)
        tgt = pairs.tgt and CutDataset(pairs.tgt, pairs.tgt_sizes, cfg.max_target_positions)
        for side, data, option in (("sources", src, "source"), ("targets", tgt, "target")):
            if data is not None and data.num_cut:
                logger.warning(f"{name}: {data.num_cut} of {len(data)} {side} cut to {data.max_length} tokens "
                               f"(--max-{option}-positions)")
        return LanguagePairDataset(
            src, src.sizes, self.src_dict, tgt, None if tgt is None else tgt.sizes, self.tgt_dict,
            left_pad_source=cfg.left_pad_source, left_pad_target=False, input_feeding=False,
            constraints=pairs.constraints, pad_to_multiple=cfg.required_seq_len_multiple, **options,
        )

    def get_batch_iterator(self, dataset, *args, num_shards: int = 1, shard_id: int = 0, **kwargs):
        """As fairseq's; generation also heeds --num-shards and --shard-id, which the host's command passes over, and
        --resume-generation.

        Raises:
            UserError: a shard that there is not; a file that is not of an interrupted run like this.
        """
        cfg = self.cfg
        if "epoch" in kwargs or self.scores or (cfg.num_shards == 1 and cfg.resume_generation is None):
            # The trainer shares its batches out itself, and validation has all.
            return super().get_batch_iterator(dataset, *args, num_shards=num_shards, shard_id=shard_id, **kwargs)
        if cfg.num_shards > 1 and num_shards == 1:
            if not 0 <= cfg.shard_id < cfg.num_shards:
                raise UserError(f"--shard-id must be from 0 to {cfg.num_shards - 1} (--num-shards {cfg.num_shards}), "
                                f"got {cfg.shard_id}")
            num_shards, shard_id = cfg.num_shards, cfg.shard_id
        iterator = super().get_batch_iterator(dataset, *args, **kwargs)
        own = iterator.frozen_batches[shard_id::num_shards]
        if not own and iterator.frozen_batches:
            # The host would divide by the time that it took.
            logger.info(f"nothing to generate in shard {shard_id}: there are {len(iterator.frozen_batches)} batches")
            sys.exit()
        if cfg.resume_generation is not None:
            left = left_to_generate(own, cfg.resume_generation)
            logger.info(f"{cfg.resume_generation}: {len(own) - len(left)} of {len(own)} batches are there")
            if len(left) < len(own):
                logger.warning(f"the score at the end is of the last {len(left)} of {len(own)} batches: "
                               "scripts/evaluate.py scores the whole file")
            own = left
        iterator._frozen_batches = own
        return iterator

    def can_reuse_epoch_itr(self, dataset) -> bool:
        """Batch the training data anew in every epoch: the host seeds the order of sentences with the epoch in which
        it batches them, so that a resumed run would otherwise go on with other batches."""
        # Of what is typed, which comes once, the host would keep all.
        return any(dataset is known for split, known in self.datasets.items() if split != self.cfg.train_subset)

    def check_typed(self, src_tokens) -> None:
        """Look at what was typed for fairseq-interactive.

        Raises:
            UserError: options that act on a whole data set.
        """
        if self.cfg.num_shards > 1 or self.cfg.resume_generation is not None:
            raise UserError("--num-shards and --resume-generation are of fairseq-generate: leave them out")
        warn_of_unknown_words(src_tokens, self.src_dict, kept=self.prompts)

    def build_dataset_for_inference(self, src_tokens, src_lengths, constraints=None) -> LanguagePairDataset:
        """Sources alone, cut, for fairseq-interactive."""
        self.check_typed(src_tokens)
        pairs = super().build_dataset_for_inference(src_tokens, src_lengths, constraints=constraints)
        return self._cut(pairs, "input", shuffle=False)

    def build_model(self, cfg, from_checkpoint: bool = False):
        """Build a diffusion model; this task cuts its data to what the model takes.

        Raises:
            UserError: cfg names a model of another kind.
        """
        arch = getattr(cfg, "_name", None) or getattr(cfg, "arch", None)
        if not issubclass(ARCH_MODEL_REGISTRY.get(arch, object), DiffusionModel):
            known = sorted(a for a, m in ARCH_MODEL_REGISTRY.items()
                           if issubclass(m, DiffusionModel) and m.prompts == self.prompts)
            where = "the checkpoint holds" if from_checkpoint else "--arch names"
            raise UserError(f"{where} a model of architecture {arch!r}, which this task does not serve: it takes "
                            f"{', '.join(known)}")
        check_eval_bleu(self.cfg)
        model = super().build_model(cfg, from_checkpoint)
        model.dictionaries = {"source": fingerprint(self.src_dict), "target": fingerprint(self.tgt_dict)}
        self.eval_rouge = EvalRouge(self.cfg, model, self.tgt_dict) if self.cfg.eval_rouge else None
        if self.cfg.compile_layers:
            compile_layers(model.transformer_layers())
        longest_source, longest_target = model.max_positions()
        self.cfg.max_source_positions = min(self.cfg.max_source_positions, longest_source)
        self.cfg.max_target_positions = min(self.cfg.max_target_positions, longest_target)
        return model

    def build_criterion(self, cfg, *args, **kwargs) -> DiffusionCriterion:
        """As fairseq's.

        Raises:
            UserError: cfg names a criterion of other models.
        """
        criterion = super().build_criterion(cfg, *args, **kwargs)
        if not isinstance(criterion, DiffusionCriterion):
            known = sorted(name for name, other in CRITERION_REGISTRY.items() if issubclass(other, DiffusionCriterion))
            raise UserError(f"--criterion {cfg._name} is not of diffusion models: choose one of {', '.join(known)}")
        self.scores = True
        return criterion

    def build_generator(self, models, args, **unused) -> DiffusionGenerator:
        """The generator of one model; args are fairseq's generation options.

        Raises:
            UserError: more than one model, or options that the model cannot serve.
        """
        if len(models) != 1:
            raise UserError("--path names several models: every diffusion model has its own latent space, so they "
                            "cannot be averaged; give one")
        validation = isinstance(args, Namespace)  # by --eval-bleu-args, which may name fairseq's beam
        stock = OmegaConf.structured(GenerationConfig)
        try:
            options = OmegaConf.merge(stock, vars(args) if validation else args)
        except OmegaConfBaseException as error:
            raise UserError(f"--eval-bleu-args: {str(error).splitlines()[0]}; it takes fairseq's options of generation "
                            '({"nbest": 1}), those of diffusion stand beside it (--diffusion-steps, ...)') from None
        unserved = [name for name in UNSERVED if options[name] != stock[name] and not (validation and name == "beam")]
        if unserved:
            instead = [INSTEAD[name] for name in unserved if name in INSTEAD]
            raise UserError(f"{', '.join('--' + name.replace('_', '-') for name in unserved)}: not served by diffusion "
                            f"generation; {'give ' + ' and '.join(instead) if instead else 'leave it out'}")
        # fairseq's 200 tokens are no choice of the user's.
        limited = (options.max_len_a, options.max_len_b) != (stock.max_len_a, stock.max_len_b)
        if limited and models[0].length_model == "given":
            raise UserError("--max-len-a, --max-len-b: this model writes as many tokens as its prompt has places "
                            "(--length-model given); leave them out")
        generator = DiffusionGenerator(
            models[0], self.tgt_dict, self.cfg, nbest=options.nbest, max_len_a=options.max_len_a,
            max_len_b=options.max_len_b if limited else None, retain_history=options.retain_iter_history,
            ends=self.ends,
        )
        if self.cfg.exit_patience is not None:
            # The host's commands have no hook for their end.
            atexit.register(lambda: say_at_the_end(generator.steps_histogram()))
        return generator

    def build_bpe(self, args):
        """The subword encoder, refused where it cannot have made the dictionary.

        Raises:
            UserError: a file of the encoder is missing or none, or the sentencepiece model does not fit the source
                dictionary.
        """
        try:
            bpe = super().build_bpe(args)
        except OSError as error:
            raise UserError(f"--bpe: {error}") from error
        except RuntimeError as error:
            if args._name != "sentencepiece":
                raise
            raise UserError(f"--sentencepiece-model {args.sentencepiece_model} is no sentencepiece model, or a part of "
                            "one: give the one the data was made with") from error
        except MissingMandatoryValue as error:
            raise UserError(f"--bpe {args._name} needs --{error.key.replace('_', '-')}: the file the data was made "
                            "with") from error
        if hasattr(bpe, "sp"):
            words = [word for word in self.src_dict.symbols[self.src_dict.nspecial:] if not is_filler(word)]
            missing = sum(bpe.sp.PieceToId(word) == bpe.sp.unk_id() for word in words)
            if words and missing / len(words) > UNKNOWN_PIECES:
                raise UserError(f"the sentencepiece model {args.sentencepiece_model} lacks {missing} of the "
                                f"{len(words)} words of the source dictionary: give the one the data was made with")
        return bpe

    def valid_step(self, sample, model, criterion):
        """The losses of a batch and, where asked for, its bound and what its first sentences score."""
        loss, sample_size, log = super().valid_step(sample, model, criterion)
        if self.eval_rouge is not None:
            log.update(self.eval_rouge.sums(sample))
        if self.cfg.eval_bound:
            log.update(bound_sums(model, sample, self.cfg.eval_bound))
        return loss, sample_size, log

    def reduce_metrics(self, logging_outputs: List[Dict[str, Any]], criterion) -> None:
        """Log the criterion's terms and, where asked for, BLEU, ROUGE and the bound: as plain numbers, which any
        checkpoint may hold."""
        FairseqTask.reduce_metrics(self, logging_outputs, criterion)
        log_rouge(logging_outputs)
        log_bound(logging_outputs)
        if not any(BLEU_TOTALS[0] in log for log in logging_outputs):
            return
        for key in BLEU_COUNTS + BLEU_TOTALS + BLEU_LENGTHS:
            metrics.log_scalar(key, float(sum(log.get(key, 0) for log in logging_outputs)))
        metrics.log_derived("bleu", _bleu_of_sums)


def _bleu_of_sums(meters) -> float:
    sums = {key: int(meters[key].sum) for key in BLEU_COUNTS + BLEU_TOTALS + BLEU_LENGTHS}
    bleu = BLEU.compute_bleu(
        correct=[sums[key] for key in BLEU_COUNTS], total=[sums[key] for key in BLEU_TOTALS],
        sys_len=sums["_bleu_sys_len"], ref_len=sums["_bleu_ref_len"], smooth_method="exp",
    )
    return round(bleu.score, 2)


def say_at_the_end(text: str) -> None:
    """Log what is known when the command ends; print it where the log went into --results-path, which is closed by
    then."""
    streams = [getattr(handler, "stream", None) for handler in logging.getLogger().handlers]
    if any(stream is not None and stream.closed for stream in streams):
        sys.stderr.write(f"{text}\n")
    else:
        logger.info(text)
