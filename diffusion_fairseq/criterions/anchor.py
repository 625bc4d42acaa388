"""The anchor loss: rounding of what the network predicts, beside or in place of rounding of the noised truth."""

from dataclasses import dataclass, field
from typing import Dict, Tuple

from fairseq.criterions import register_criterion
from torch import Tensor

from diffusion_fairseq.criterions.vlb import DiffusionVLBConfig, DiffusionVLBCriterion
from diffusion_fairseq.diffusion.losses import weighted_sum
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.training_pass import GRADIENT_PATHS, TrainingPass


@dataclass
class DiffusionAnchorConfig(DiffusionVLBConfig):
    """Weights of the terms, and what each may do to the embeddings."""

    rounding_weight: float = field(
        default=0.0,
        metadata={"help": "weight of -log p(y | x0), the rounding of the noised truth: above 0 beside the anchor"},
    )
    anchor_weight: float = field(
        default=1.0,
        metadata={"help": "weight of -log p(y | predicted x0): teaches the network to come close to a token, and keeps "
                          "embeddings apart that it mistakes for one another"},
    )
    label_smoothing: float = field(
        default=0.0,
        metadata={"help": "share of the probability that the rounding and anchor terms give to all tokens alike; 0.1 "
                          "where the anchor is sure of itself long before the text is good"},
    )
    detach: str = field(
        default="none",
        metadata={"help": "ways, with commas between, by which no gradient reaches the embeddings, or none: "
                          + "; ".join(f"{name}: {what}" for name, what in GRADIENT_PATHS.items())},
    )


@register_criterion("diffusion_anchor", dataclass=DiffusionAnchorConfig)
class DiffusionAnchorCriterion(DiffusionVLBCriterion):
    """mse + anchor + prior, and rounding where it has a weight (Gao et al., 2022; Stabilizing Diffusion LMs, 4.1).

    Raises:
        UserError: an option out of range.
    """

    def __init__(self, cfg: DiffusionAnchorConfig, task):
        super().__init__(cfg, task)
        if not 0 <= cfg.label_smoothing < 1:
            raise UserError(f"--label-smoothing must be at least 0 and below 1, got {cfg.label_smoothing}")
        detached = frozenset() if cfg.detach == "none" else frozenset(cfg.detach.split(","))
        if not detached <= GRADIENT_PATHS.keys():
            raise UserError(f"--detach {cfg.detach!r}: choose among {', '.join(GRADIENT_PATHS)}, or none")
        self.objective = self.objective._replace(anchor=cfg.anchor_weight != 0, label_smoothing=cfg.label_smoothing,
                                                 detached=detached)

    def terms(self, parts: TrainingPass, t: Tensor, weight: Tensor, schedule) -> Dict[str, Tuple[float, Tensor]]:
        terms = super().terms(parts, t, weight, schedule)
        if self.objective.anchor:
            terms["anchor"] = self.cfg.anchor_weight, weighted_sum(parts.anchor_nll, weight)
        return terms
