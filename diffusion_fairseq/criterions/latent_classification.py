"""Cross-entropy of labels given noised texts."""

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics
from torch import Tensor

from diffusion_fairseq.criterions.base import TimestepConfig, draw_timesteps, poisoned

LOW_NOISE = 0.1  # the first share of the timesteps, by which a text is nearly what it will be


@dataclass
class LatentClassificationConfig(TimestepConfig):
    """Options of the criterion."""


@register_criterion("latent_classification", dataclass=LatentClassificationConfig)
class LatentClassificationCriterion(FairseqCriterion):
    """-log p(label | x_t, t) at a t drawn for each text; logs the share of right labels, and that at low noise."""

    def __init__(self, cfg: LatentClassificationConfig, task):
        super().__init__(task)
        self.cfg, self.skips_bad_batches = cfg, cfg.skip_bad_batches

    def forward(self, model, sample, reduce: bool = True) -> Tuple[Tensor, int, Dict[str, Any]]:
        """The loss in nats, the number of texts, and what is logged."""
        target = sample["target"].view(-1)
        sampler = model.timestep_sampler(self.cfg.timestep_sampler)
        t, importance, draws = draw_timesteps(
            sampler, len(target), target.device, None if model.training else sample["id"])
        logits = model(sample["net_input"]["src_tokens"], t, draws=draws)
        nll = F.cross_entropy(logits, target, reduction="none")
        if model.training:
            kept = slice(0 if sample.get("ignored") else None)
            model.meet(t[kept], nll[kept])
        loss = poisoned((nll * importance).sum())
        right, low = logits.argmax(dim=1) == target, t < LOW_NOISE * sampler.num_timesteps
        return loss, len(target), {
            "loss": loss.detach(), "accuracy": right.sum(), "accuracy_low_noise": (right & low).sum(),
            "low_noise": low.sum(), "sample_size": len(target), "nsentences": len(target), "ntokens": sample["ntokens"],
        }

    @classmethod
    def reduce_metrics(cls, logging_outputs: List[Dict[str, Any]]) -> None:
        """Log the loss per text and the accuracies, from 0 to 1."""
        total = {name: float(sum(log[name] for log in logging_outputs)) for name in logging_outputs[0]}
        counts = {"loss": "sample_size", "accuracy": "sample_size", "accuracy_low_noise": "low_noise"}
        for name, count in ((name, total[count]) for name, count in counts.items()):
            if count:
                metrics.log_scalar(name, total[name] / count, count, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
