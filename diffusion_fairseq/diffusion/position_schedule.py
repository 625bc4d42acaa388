"""A noise schedule as a table that is saved with a model: levels of its own for each position, or one row for all."""

import torch
from torch import Tensor, nn

from diffusion_fairseq.diffusion.schedules import CLEAN, NoiseLevel, strided_grid


class Tables(nn.Module):
    """Buffers that move with the model they are part of and are saved with it, but are never cast."""

    def _apply(self, fn, *args, **kwargs):
        tables = dict(self._buffers)
        super()._apply(fn, *args, **kwargs)
        for name, table in tables.items():
            self._buffers[name] = table.to(self._buffers[name].device)
        return self


class PositionSchedule(Tables):
    """A variance-preserving schedule given by a table of log-SNRs.

    Args:
        log_snr: (L, T) float64, a row for each position; further positions have the last row's levels.
    """

    def __init__(self, log_snr: Tensor):
        super().__init__()
        self.register_buffer("log_snr", log_snr)

    @property
    def num_timesteps(self) -> int:
        """T."""
        return self.log_snr.size(1)

    def at(self, t: Tensor) -> NoiseLevel:
        """The levels of all positions at integer times t (any shape), on the device of t: alpha and sigma have the
        shape of t and one dimension more, (1, L) for a single time."""
        times = torch.atleast_1d(t).to(self.log_snr.device)
        log_snr = self.log_snr.t()[times].masked_fill((times == CLEAN)[..., None], torch.inf)
        return NoiseLevel(t, *(x.sigmoid().sqrt().to(t.device) for x in (log_snr, -log_snr)))

    def grid(self, num_steps: int, name: str = "uniform") -> Tensor:
        """As DiscreteSchedule.grid; all positions share the times, which are spaced by their mean log-SNR."""
        return strided_grid(num_steps, name, (-self.log_snr.mean(dim=0) / 2).exp().cpu())
