"""What the criterions of diffusion models share: drawing t, counting, logging each term under its own name."""

import math
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from diffusion_fairseq.diffusion.adaptive import AdaptiveSchedule
from diffusion_fairseq.diffusion.noise import Draws, RowDraws, combine
from diffusion_fairseq.diffusion.timesteps import TIMESTEP_SAMPLERS, UniformTimesteps
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.bound import even_shares
from diffusion_fairseq.models.training_pass import Objective, TrainingPass
from diffusion_fairseq.text.embedding import embedding_health

HEALTH, HEALTH_COUNT = "embedding_", "_health_count"
VALIDATION_SEED = 1  # of the noise in validation, the same at every epoch, so that its losses can be compared


@dataclass
class TimestepConfig(FairseqDataclass):
    """How a criterion draws t."""

    timestep_sampler: str = field(
        default="low-discrepancy",
        metadata={"help": f"training law of t: {', '.join(TIMESTEP_SAMPLERS)}. low-discrepancy spreads t evenly over "
                          "a batch and lowers the variance for nothing; loss-second-moment draws hard t more often "
                          "and weighs them less"},
    )
    skip_bad_batches: bool = field(
        default=False,
        metadata={"help": "leave out an update whose loss or gradient is not finite, with a warning that names its "
                          "sentences, in place of stopping there: for a rare bad sentence in a long run; the weights "
                          "stay clean either way"},
    )


@dataclass
class DiffusionCriterionConfig(TimestepConfig):
    """Options of every diffusion criterion."""

    timesteps_per_encoding: int = field(
        default=1,
        metadata={"help": "noised copies of each target, at as many timesteps, that share one encoding and one "
                          "rounding of x0 in training: more to learn from per second where sources are long; the "
                          "copies are correlated, so that 2 to 4 is enough"},
    )
    padding_in_mean: bool = field(
        default=False,
        metadata={"help": "count every modelled padding position like a word, as the published code does; by "
                          "default the padding of a sentence counts as one position"},
    )
    given_in_loss: bool = field(
        default=False,
        metadata={"help": "count the given positions of a sequence like the generated ones: with DiffuSeq the source, "
                          "as published, which dilutes the loss by what is easily known"},
    )


class DiffusionCriterion(FairseqCriterion):
    """Draws t, calls the model once, sums the terms of `terms` with their weights.

    The loss is a sum over positions; sample_size is their (weighted) count.
    """

    def __init__(self, cfg: DiffusionCriterionConfig, task):
        super().__init__(task)
        if cfg.timesteps_per_encoding < 1:
            raise UserError(f"--timesteps-per-encoding must be at least 1, got {cfg.timesteps_per_encoding}")
        for name in (name for name in dir(cfg) if name.endswith("_weight")):
            if not 0 <= getattr(cfg, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must be at least 0, got {getattr(cfg, name)}")
        self.cfg, self.skips_bad_batches = cfg, cfg.skip_bad_batches
        self.objective = Objective(given=cfg.given_in_loss)
        # Of the embeddings as they were at their last update: validation has many batches and one table.
        self._health: Optional[Dict[str, float]] = None  # of this validation's embeddings

    def terms(self, parts: TrainingPass, t: Tensor, weight: Tensor, schedule) -> Dict[str, Tuple[float, Tensor]]:
        """Name -> (weight in the loss, sums per example (B,)).

        Args:
            weight: (B, L), what each position counts.
        """
        raise NotImplementedError

    def position_weights(self, parts: TrainingPass) -> Tensor:
        """What each position counts (B, L): tokens 1; padding together 1, or 1 each with --padding-in-mean."""
        padding = parts.modelled & ~parts.counts
        share = padding.float()
        if not self.cfg.padding_in_mean:
            share = share / padding.sum(dim=1, keepdim=True).clamp(min=1)
        return parts.counts.float() + share

    def forward(self, model, sample, reduce: bool = True) -> Tuple[Tensor, Tensor, Dict[str, Any]]:
        """The loss in nats, its sample size, and what is logged."""
        target = sample["target"]
        sampler = model.timestep_sampler(self.cfg.timestep_sampler)
        count = len(target) * (self.cfg.timesteps_per_encoding if model.training else 1)
        validated = None if model.training else sample["id"]
        t, importance, draws = draw_timesteps(sampler, count, target.device, validated)
        parts = model(sample["net_input"]["src_tokens"], target, t, draws=draws, objective=self.objective)
        weight = self.position_weights(parts)
        terms = self.terms(parts, t, weight, model.schedule)
        count = weight.sum(dim=1)
        per_example = sum(share * term for share, term in terms.values())
        if model.training:
            self._health = None  # not by a tensor's version: fairseq's optimizers write through .data, which keeps it
            # Nothing, where the host computes a batch only so that all processes have as many.
            kept = slice(0 if sample.get("ignored") else None)
            model.meet(t[kept], (per_example / count)[kept])
            if isinstance(model.schedule, AdaptiveSchedule):
                # Of x0 whatever is predicted: the error of predicted noise falls with t.
                error = (parts.pred_x0 - parts.x0).detach().square().mean(dim=-1)
                model.schedule.observe(t[kept], error[kept], parts.counts[kept])
        loss = (per_example * importance).sum() + self.zero(model, parts)
        sample_size = count.sum()
        log = {name: term.detach().sum() for name, (_, term) in terms.items()}
        if parts.length_logits is not None:
            length = self.length_loss(parts)
            # Once for each of the copies, which sample_size counts.
            loss = loss + self.cfg.length_weight * length * (len(parts.target) // len(target))
            log["length"] = length.detach()
        log.update(loss=loss.detach(), sample_size=sample_size, ntokens=parts.counts.sum(), nsentences=len(target))
        if "mse" in terms:
            at_zero = t == 0
            log.update(t0=log_sum(terms["mse"][1], at_zero), t0_count=log_sum(count, at_zero))
        if not model.training:
            log.update(self.watch(model, parts, weight))
        return poisoned(loss), sample_size, log

    def zero(self, model, parts: TrainingPass) -> Union[int, Tensor]:
        """0, with a gradient of zero for what no term reaches: several processes share one for every parameter."""
        unreached = [] if self.objective.rounding or self.objective.anchor else [model.rounding_bias]
        # Every way to the embeddings may be closed.
        unreached += [parts.embedded] if self.objective.detached else []
        return sum(0 * tensor.sum() for tensor in unreached)

    def watch(self, model, parts: TrainingPass, weight: Tensor) -> Dict[str, Any]:
        """What validation logs beside the losses: the shares of positions whose token the noised embedding x0 and the
        predicted one round to, and the health of the embeddings."""
        search = model.token_search(torch.zeros(model.embedding.num_embeddings, dtype=torch.bool,
                                                device=weight.device))
        right = {"accuracy_x0": search(parts.x0), "accuracy": search(parts.pred_x0)}
        found = {name: ((tokens == parts.target) * weight).sum() for name, tokens in right.items()}
        if self._health is None:
            self._health = embedding_health(model.vectors)
        found.update({HEALTH + name: value for name, value in self._health.items()})
        return {**found, HEALTH_COUNT: 1}

    @staticmethod
    def length_loss(parts: TrainingPass) -> Tensor:
        """-log p(length), summed over the sentences."""
        return torch.nn.functional.cross_entropy(parts.length_logits, parts.lengths, reduction="sum")

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Dict[str, Any]]) -> None:
        """Log every term per position (length: per sentence, t0: per position of examples at t = 0), in nats; what
        begins with _ is another's to log."""
        own = {"sample_size", "ntokens", "nsentences", "t0", "t0_count"}
        total = {name: sum(log[name] for log in logging_outputs) for name in logging_outputs[0]}
        per, digits = {"length": "nsentences"}, {"prior": 10}
        per.update({name: HEALTH_COUNT for name in total if name.startswith(HEALTH)})
        for name in total:
            if name not in own and not name.startswith("_"):
                count = float(total[per.get(name, "sample_size")])
                metrics.log_scalar(name, float(total[name]) / max(count, 1.0), count, round=digits.get(name, 4))
        if total.get("t0_count", 0) > 0:
            metrics.log_scalar("t0", float(total["t0"] / total["t0_count"]), float(total["t0_count"]), round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def draw_timesteps(sampler: UniformTimesteps, n: int, device: torch.device,
                   validated: Optional[Tensor]) -> Tuple[Tensor, Tensor, Draws]:
    """n timesteps and their importance weights, and what the noise is drawn from.

    Args:
        validated: the numbers (n,) of examples of validation, each of which has the same time and noise at every
            epoch, whatever its batch; the times are evenly spread over the split. None: training.
    """
    if validated is None:
        return *sampler.draw(n, device), Draws()
    t = sampler.spread(even_shares(validated, 1)[0]).to(device)
    return t, torch.ones(n, device=device), RowDraws(combine(validated, VALIDATION_SEED))


def poisoned(loss: Tensor) -> Tensor:
    """The loss; where it is not finite its whole gradient is not either, so that the one check of the gradient's norm,
    which all processes share, sees both."""
    return loss * (1 + 0 * loss.detach())


def log_sum(values: Tensor, chosen: Tensor) -> Tensor:
    """The sum (0-dim) of the chosen values (B,), without gradient."""
    return (values.detach() * chosen).sum()
