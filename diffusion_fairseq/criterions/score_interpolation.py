"""Score interpolation: cross-entropy of the tokens at noised positions (CDCD, section 3.1; DDLM, section 2)."""

from dataclasses import dataclass, field
from typing import Dict, Tuple

from fairseq.criterions import register_criterion
from torch import Tensor

from diffusion_fairseq.criterions.base import DiffusionCriterion, DiffusionCriterionConfig
from diffusion_fairseq.diffusion.losses import weighted_sum
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.training_pass import TrainingPass


@dataclass
class ScoreInterpolationConfig(DiffusionCriterionConfig):
    """The law of t, and smoothing."""

    timestep_sampler: str = field(
        default="uniform",
        metadata={"help": "training law of t, evenly spread over each batch: uniform (DDLM), time-warp (CDCD: more of "
                          "the times at which the loss rises fastest) or gumbel (the same with two numbers)"},
    )
    label_smoothing: float = field(
        default=0.0, metadata={"help": "share of the probability that is given to all tokens alike"}
    )


@register_criterion("score_interpolation", dataclass=ScoreInterpolationConfig)
class ScoreInterpolationCriterion(DiffusionCriterion):
    """-log p(x_0 | x_t, t), summed over the noised positions, in nats.

    Raises:
        UserError: label smoothing out of range; a model that does not predict tokens.
    """

    def __init__(self, cfg: ScoreInterpolationConfig, task):
        super().__init__(cfg, task)
        if not 0 <= cfg.label_smoothing < 1:
            raise UserError(f"--label-smoothing must be at least 0 and below 1, got {cfg.label_smoothing}")
        self.objective = self.objective._replace(rounding=False, anchor=True, label_smoothing=cfg.label_smoothing)

    def terms(self, parts: TrainingPass, t: Tensor, weight: Tensor, schedule) -> Dict[str, Tuple[float, Tensor]]:
        if parts.prediction is not None:
            raise UserError("--criterion score_interpolation trains models that predict tokens (--arch ddlm_base): "
                            "take diffusion_vlb or diffusion_anchor for this one")
        return {"ce": (1.0, weighted_sum(parts.anchor_nll, weight))}
