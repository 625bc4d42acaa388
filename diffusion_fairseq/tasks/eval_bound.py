"""The bound on the negative log-likelihood during validation, so that checkpoints can be chosen by it."""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List

import torch
from fairseq.logging import metrics
from torch import Tensor

from diffusion_fairseq.diffusion.noise import RowDraws
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.base import DiffusionModel
from diffusion_fairseq.models.bound import even_shares, nll_bound

NATS, TOKENS = "_bound_nats", "_bound_tokens"


@dataclass
class EvalBoundConfig:
    """Options of the bound in validation."""

    eval_bound: int = field(
        default=0,
        metadata={"help": "draws for each example by which validation logs `bound`, an upper bound on the negative "
                          "log-likelihood in nats a token, and `bound_bits`, the same in bits: --best-checkpoint-metric"
                          " bound keeps the likeliest checkpoint. 1 is enough for thousands of examples; each costs as "
                          "much as the validation loss. 0: off"},
    )


def check_eval_bound(cfg: EvalBoundConfig) -> None:
    """Refuse a number that no validation can serve.

    Raises:
        UserError: naming the option.
    """
    if cfg.eval_bound < 0:
        raise UserError(f"--eval-bound must be at least 0, got {cfg.eval_bound}")


def bound_sums(model: DiffusionModel, sample: Dict[str, Any], draws: int) -> Dict[str, Tensor]:
    """The bound in nats of a batch and the tokens that it counts, both summed over its examples and draws.

    An example's times and noise depend on its number alone: they are the same at every validation, in every batch and
    in every process.
    """
    source, target = sample["net_input"]["src_tokens"], sample["target"]
    noise = RowDraws(sample["id"])
    with torch.no_grad():
        found = [nll_bound(model, source, target, u, noise) for u in even_shares(sample["id"], draws)]
    return {NATS: sum(bound.total.sum() for bound in found), TOKENS: sum(bound.count.sum() for bound in found)}


def log_bound(logging_outputs: List[Dict[str, Any]]) -> None:
    """Log the mean of what `bound_sums` has summed."""
    nats, tokens = (float(sum(log.get(name, 0) for log in logging_outputs)) for name in (NATS, TOKENS))
    if tokens:
        metrics.log_scalar("bound", nats / tokens, tokens, round=4)
        metrics.log_scalar("bound_bits", nats / tokens / math.log(2), tokens, round=4)
