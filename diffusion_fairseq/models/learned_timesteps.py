"""The training law of t as a part of the model, so that what it has learned is saved with the weights."""

from typing import Any, Dict

from fairseq.models import BaseFairseqModel

from diffusion_fairseq.diffusion.timesteps import TIMESTEP_SAMPLERS, UniformTimesteps
from diffusion_fairseq.errors import one_of


class LearnsTimesteps(BaseFairseqModel):
    """A model with a `schedule` that keeps the law by which its training draws t."""

    def timestep_sampler(self, name: str) -> UniformTimesteps:
        """The training law of t of this name, as it has been learned so far."""
        sampler = TIMESTEP_SAMPLERS[one_of("--timestep-sampler", name, tuple(TIMESTEP_SAMPLERS))]
        if type(getattr(self, "timesteps", None)) is not sampler:
            self.timesteps = sampler(self.schedule.num_timesteps).to(next(self.parameters()).device)
        return self.timesteps

    def upgrade_state_dict_named(self, state_dict: Dict[str, Any], name: str) -> None:
        """Make room for what a loss-aware timestep sampler has learned, or keep ours where a file has none."""
        prefix = name + "." if name else ""
        learned = {key for key in state_dict if key.startswith(prefix + "timesteps.")}
        if learned and not hasattr(self, "timesteps"):
            self.timestep_sampler("loss-second-moment")
        if not learned and hasattr(self, "timesteps"):
            for key, value in self.timesteps.state_dict().items():
                state_dict[prefix + "timesteps." + key] = value
        super().upgrade_state_dict_named(state_dict, name)
