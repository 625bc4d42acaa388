"""The training law of t as a part of the model, so that what it has learned is saved with the weights."""

import logging
from typing import Any, Dict, List

import torch
from fairseq.models import BaseFairseqModel
from torch import Tensor

from diffusion_fairseq.diffusion.adaptive import AdaptiveSchedule
from diffusion_fairseq.diffusion.processes import gather_passes
from diffusion_fairseq.diffusion.schedules import SigmaEqualsT
from diffusion_fairseq.diffusion.time_laws import TIME_LAWS, FittedTimes
from diffusion_fairseq.diffusion.timesteps import TIMESTEP_SAMPLERS, UniformTimesteps
from diffusion_fairseq.errors import one_of

logger = logging.getLogger(__name__)


class LearnsTimesteps(BaseFairseqModel):
    """A model with a `schedule` that keeps the law by which its training draws t."""

    def __init__(self):
        super().__init__()
        # (t, loss) of the examples of each pass of the present update.
        self._met: List[Tensor] = []

    def timestep_sampler(self, name: str) -> UniformTimesteps:
        """The training law of t of this name, as it has been learned so far."""
        continuous = isinstance(self.schedule, SigmaEqualsT)
        known = TIME_LAWS if continuous else TIMESTEP_SAMPLERS
        law = known[one_of("--timestep-sampler", name, tuple(known))]
        before = getattr(self, "timesteps", None)
        if type(before) is not law:
            times = (self.schedule.t_min, self.schedule.t_max) if continuous else (self.schedule.num_timesteps,)
            self.timesteps = law(*times).to(next(self.parameters()).device)
            if isinstance(before, FittedTimes) and isinstance(self.timesteps, FittedTimes):  # to the same losses
                self.timesteps.load_state_dict(before.state_dict(), strict=False)
        return self.timesteps

    def meet(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the losses (n,) of a pass at times t (n,), for a law that learns; of none where a pass does not
        count."""
        if self.timesteps.state_dict():
            self._met.append(torch.stack([t.double(), losses.detach().double()], dim=1))

    def end_update(self) -> None:
        """Learn from what all processes of a training have met in an update, in each of them alike: once an update,
        however many passes it has."""
        met, self._met = self._met, []
        if met:
            t, losses = gather_passes(met).unbind(dim=1)
            finite = torch.isfinite(losses)
            if finite.any():
                self.timesteps.update(t[finite], losses[finite])
        if isinstance(self.schedule, AdaptiveSchedule):
            self.schedule.end_update()

    def leave_out_update(self) -> None:
        """Forget what has been met since the last update."""
        self._met = []
        if isinstance(self.schedule, AdaptiveSchedule):
            self.schedule.leave_out_update()

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """Make room for what a loss-aware timestep sampler has learned, or keep ours where a file has none."""
        prefix = name + "." if name else ""
        learned = {key for key in state_dict if key.startswith(prefix + "timesteps.")}
        fitted = "gumbel" if prefix + "timesteps.gumbel" in learned else "time-warp"
        if learned and not hasattr(self, "timesteps"):
            self.timestep_sampler(fitted if prefix + "timesteps.edges" in learned else "loss-second-moment")
        elif learned and isinstance(self.timesteps, FittedTimes):
            self.timestep_sampler(fitted)
        edges = state_dict.get(prefix + "timesteps.edges")
        if edges is not None and isinstance(self.timesteps, FittedTimes) and not self.timesteps.same_bins(edges):
            logger.info("the law of t was fitted on another range (--t-min, --t-max): it is fitted anew")
            learned = set()
        if not learned and hasattr(self, "timesteps"):
            for key, value in self.timesteps.state_dict().items():
                state_dict[prefix + "timesteps." + key] = value
        super().upgrade_state_dict_named(state_dict, name)
