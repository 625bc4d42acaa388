"""The simplified variational bound with rounding: GENIE's training objective."""

from dataclasses import dataclass, field
from typing import Dict, Tuple

import torch
from fairseq.criterions import register_criterion
from torch import Tensor

from diffusion_fairseq.criterions.base import DiffusionCriterion, DiffusionCriterionConfig
from diffusion_fairseq.diffusion.losses import masked_mse, prior_term, weighted_sum
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.training_pass import TrainingPass


@dataclass
class DiffusionVLBConfig(DiffusionCriterionConfig):
    """Weights of the terms; 1 each as published."""

    mse_weight: float = field(
        default=1.0,
        metadata={"help": "weight of the squared error of the prediction (at t = 0: of the clean embedding)"},
    )
    rounding_weight: float = field(
        default=1.0,
        metadata={"help": "weight of -log p(y | x0), which keeps embeddings apart; 0 lets them collapse"},
    )
    prior_weight: float = field(default=1.0, metadata={"help": "weight of (alpha_T x0)^2, the published tT term"})
    length_weight: float = field(
        default=1.0, metadata={"help": "weight of a sentence's -log p(length) under --length-model predicted"}
    )


@register_criterion("diffusion_vlb", dataclass=DiffusionVLBConfig)
class DiffusionVLBCriterion(DiffusionCriterion):
    """mse + rounding + prior: GENIE's eq. 12, simplified (Li et al., 2022, section 4.1).

    The first term's weight on ||x0 - pred_x0||^2, (sqrt(abar_{t-1}) beta_t / (1 - abar_t))^2, is 1 at every t; at t = 0
    the second term stands in its place; the prior is not in eq. 12.
    """

    def __init__(self, cfg: DiffusionVLBConfig, task):
        super().__init__(cfg, task)
        self.objective = self.objective._replace(rounding=cfg.rounding_weight != 0)

    def terms(self, parts: TrainingPass, t: Tensor, weight: Tensor, schedule) -> Dict[str, Tuple[float, Tensor]]:
        if parts.prediction is None:
            raise UserError("this model predicts tokens, not embeddings: train it with --criterion score_interpolation")
        aim, embedded = (self.objective.through("aim", x) for x in (parts.aim, parts.embedded))
        mse = torch.where(
            t == 0, masked_mse(parts.pred_x0, embedded, weight), masked_mse(parts.prediction, aim, weight)
        )
        last = schedule.at(torch.tensor(schedule.num_timesteps - 1)).cut(weight.size(1))
        x0 = self.objective.through("prior", parts.x0)
        terms = {
            "mse": (self.cfg.mse_weight, mse),
            "prior": (self.cfg.prior_weight, prior_term(x0, last.alpha, weight)),
        }
        if self.objective.rounding:
            terms["rounding"] = (self.cfg.rounding_weight, weighted_sum(parts.rounding_nll, weight))
        return terms
