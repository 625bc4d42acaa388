"""The training law of t as a part of the model, so that what it has learned is saved with the weights."""

from typing import Any, Dict

from fairseq.models import BaseFairseqModel

from diffusion_fairseq.diffusion.schedules import SigmaEqualsT
from diffusion_fairseq.diffusion.time_laws import TIME_LAWS
from diffusion_fairseq.diffusion.timesteps import TIMESTEP_SAMPLERS, UniformTimesteps
from diffusion_fairseq.errors import one_of


class LearnsTimesteps(BaseFairseqModel):
    """A model with a `schedule` that keeps the law by which its training draws t."""

    def timestep_sampler(self, name: str) -> UniformTimesteps:
        """The training law of t of this name, as it has been learned so far."""
        continuous = isinstance(self.schedule, SigmaEqualsT)
        known = TIME_LAWS if continuous else TIMESTEP_SAMPLERS
        law = known[one_of("--timestep-sampler", name, tuple(known))]
        before = getattr(self, "timesteps", None)
        if type(before) is not law:
            times = (self.schedule.t_min, self.schedule.t_max) if continuous else (self.schedule.num_timesteps,)
            self.timesteps = law(*times).to(next(self.parameters()).device)
            if before is not None and before.state_dict().keys() == self.timesteps.state_dict().keys():
                # Laws that are fitted to the same losses.
                self.timesteps.load_state_dict(before.state_dict())
        return self.timesteps

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """Make room for what a loss-aware timestep sampler has learned, or keep ours where a file has none."""
        prefix = name + "." if name else ""
        learned = {key for key in state_dict if key.startswith(prefix + "timesteps.")}
        if learned and not hasattr(self, "timesteps"):
            self.timestep_sampler("time-warp" if prefix + "timesteps.edges" in learned else "loss-second-moment")
        if not learned and hasattr(self, "timesteps"):
            for key, value in self.timesteps.state_dict().items():
                state_dict[prefix + "timesteps." + key] = value
        super().upgrade_state_dict_named(state_dict, name)
