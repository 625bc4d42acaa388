"""Scores of generated text during validation, so that checkpoints can be chosen by what they write."""

import json
from dataclasses import dataclass, field
from typing import Any, Dict, List

import torch
from fairseq.data import Dictionary
from fairseq.data.encoders import TOKENIZER_REGISTRY
from fairseq.logging import metrics
from fairseq.models import BaseFairseqModel
from fairseq.tasks.translation import TranslationConfig

from diffusion_fairseq.data.typed_lines import SPACE
from diffusion_fairseq.errors import UserError, one_of
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.metrics.glge import without_marks
from diffusion_fairseq.metrics.overlap import rouge_per_sentence
from diffusion_fairseq.tasks.sampling_config import SamplingConfig

# What is summed, and rouge-score's name for it; logged without the first letter.
ROUGE = {"_rouge_1": "rouge1", "_rouge_2": "rouge2", "_rouge_l": "rougeL"}
COUNT = "_rouge_count"


@dataclass
class EvalRougeConfig:
    """Options of validation by generation."""

    eval_rouge: bool = field(
        default=False,
        metadata={"help": "generate in validation and log rouge_1, rouge_2, rouge_l: --best-checkpoint-metric rouge_l "
                          "--maximize-best-checkpoint-metric keeps the checkpoint that writes best"},
    )
    eval_rouge_steps: int = field(
        default=10, metadata={"help": "reverse steps of that generation: few, it is done at every validation"}
    )
    eval_rouge_sentences: int = field(
        default=200, metadata={"help": "sentences that are generated, the first of the set"}
    )
    eval_rouge_remove_bpe: str = field(
        default="sentencepiece", metadata={"help": "how subwords become words: sentencepiece, subword_nmt, none, ..."}
    )


def check_eval_bleu(cfg: TranslationConfig) -> None:
    """Refuse options of fairseq's --eval-bleu with which validation would end in a traceback.

    Raises:
        UserError: no JSON object, or an unknown detokenizer.
    """
    for option, text in (("--eval-bleu-args", cfg.eval_bleu_args),
                         ("--eval-bleu-detok-args", cfg.eval_bleu_detok_args)):
        try:
            found = json.loads(text)
        except ValueError:
            raise UserError(f"{option}: {text!r} is no JSON") from None
        if not isinstance(found, dict):
            raise UserError(f"{option}: {text!r} is no JSON object: give options and their values, as {{}}")
    if cfg.eval_bleu:
        one_of("--eval-bleu-detok", cfg.eval_bleu_detok, tuple(sorted(TOKENIZER_REGISTRY)))


class EvalRouge:
    """Generates the first sentences of a validation set with few clamped steps and sums their ROUGE.

    Raises:
        UserError: numbers out of range, a model that cannot take so many steps, or subwords of another kind.
    """

    def __init__(self, cfg: EvalRougeConfig, model: BaseFairseqModel, dictionary: Dictionary):
        if cfg.eval_rouge_steps < 1 or cfg.eval_rouge_sentences < 1:
            raise UserError("--eval-rouge-steps and --eval-rouge-sentences must be at least 1")
        self.cfg, self.dictionary = cfg, dictionary
        sampling = SamplingConfig(diffusion_steps=cfg.eval_rouge_steps, clamping=True, seed=1)
        trained = getattr(model.schedule, "num_timesteps", cfg.eval_rouge_steps)
        if cfg.eval_rouge_steps > trained:
            raise UserError(f"--eval-rouge-steps {cfg.eval_rouge_steps} exceeds the {trained} timesteps of the model")
        if cfg.eval_rouge_remove_bpe == "sentencepiece" and not any(SPACE in word for word in dictionary.symbols):
            raise UserError("--eval-rouge-remove-bpe sentencepiece: the dictionary has no subwords of sentencepiece, "
                            "and all words of a text would become one: give subword_nmt, or none")
        self.generator = DiffusionGenerator(model, dictionary, sampling)

    def sums(self, sample: Dict[str, Any]) -> Dict[str, float]:
        """ROUGE F1 x 100, summed over the sentences of a batch that belong to the first ones, and their count."""
        chosen = (sample["id"] < self.cfg.eval_rouge_sentences).nonzero().squeeze(1)
        found = {name: 0.0 for name in (*ROUGE, COUNT)}
        if len(chosen):
            with torch.no_grad():
                hypotheses = self.generator.generate(
                    [self.generator.model], {"net_input": {"src_tokens": sample["net_input"]["src_tokens"][chosen]}})
            written = [self.text(candidates[0]["tokens"]) for candidates in hypotheses]
            references = [self.text(row[row != self.dictionary.pad()]) for row in sample["target"][chosen]]
            scores = rouge_per_sentence(written, references, list(ROUGE.values()))
            found.update({name: float(sum(scores[kind])) for name, kind in ROUGE.items()})
            found[COUNT] = float(len(chosen))
        return found

    def text(self, tokens: torch.Tensor) -> str:
        """Words of tokens (L,), subwords joined as --eval-rouge-remove-bpe says, without marks between sentences."""
        return without_marks(self.dictionary.string(tokens.int().cpu(), self.cfg.eval_rouge_remove_bpe))


def log_rouge(logging_outputs: List[Dict[str, Any]]) -> None:
    """Log the mean of what `EvalRouge.sums` has summed."""
    count = sum(log.get(COUNT, 0) for log in logging_outputs)
    for name in ROUGE if count else ():
        mean = float(sum(log[name] for log in logging_outputs)) / float(count)
        metrics.log_scalar(name[1:], mean, float(count), round=2)
