"""Training laws of a continuous t in [t_min, t_max]: draw(n) -> (t, weight), update(t, loss), and the CDF behind them.

Each draws u evenly spread over (0, 1), shuffled (Kingma et al., 2021, appendix I.1), and t = F^-1(u). Weights are 1: a
law says where learning is worth most, and the loss is the mean under it (CDCD, section 3.2).
"""

from typing import Dict, Optional, Tuple

import torch
from torch import Generator, Tensor

from diffusion_fairseq.diffusion.adaptive import interpolate, rising
from diffusion_fairseq.diffusion.position_schedule import Tables

EULER_GAMMA = 0.5772156649015329


class UniformTimes(Tables):
    """t uniform in [t_min, t_max] (DDLM, section 3.3)."""

    def __init__(self, t_min: float, t_max: float):
        super().__init__()
        self.t_min, self.t_max = t_min, t_max

    def cdf(self, t: Tensor) -> Tensor:
        """F(t), 0 at t_min and 1 at t_max."""
        return (t.double() - self.t_min) / (self.t_max - self.t_min)

    def quantile(self, u: Tensor) -> Tensor:
        """F^-1(u), in float64."""
        return self.t_min + u.double() * (self.t_max - self.t_min)

    def draw(self, n: int, device: torch.device, generator: Optional[Generator] = None) -> Tuple[Tensor, Tensor]:
        """n times (n,) float64 and their weights (n,) float32."""
        offset = torch.rand(1, generator=generator, device=device, dtype=torch.float64)
        u = (torch.arange(n, device=device, dtype=torch.float64) / n + offset) % 1
        # Batches are sorted by length: shuffled, so that t does not follow the length.
        u = u[torch.randperm(n, generator=generator, device=device)]
        return self.quantile(u), torch.ones(n, device=device)

    def spread(self, u: Tensor) -> Tensor:
        """The times (n,) float64 at shares u (n,) of the way from t_min to t_max, whatever the law."""
        return self.t_min + u.double() * (self.t_max - self.t_min)

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Learn from the losses (n,) met at the times t (n,); a fixed law learns nothing."""


class FittedTimes(UniformTimes):
    """A law that is fitted to the loss as a function of t, so that the loss rises evenly with u.

    The loss is averaged in bins of log t, old losses fading.

    Args:
        bins: how many.
        memory: updates over which a loss fades to 1 / e.
        uniform_share: of the draws that are uniform, so that every bin goes on being met.
    """

    def __init__(self, t_min: float, t_max: float, bins: int = 100, memory: float = 1000.0,
                 uniform_share: float = 0.01):
        super().__init__(t_min, t_max)
        self.keep, self.uniform_share = 1 - 1 / memory, uniform_share
        low, high = torch.tensor([t_min, t_max], dtype=torch.float64).log()
        # Floating point, because an average of the weights over updates also averages buffers.
        self.register_buffer("edges", torch.linspace(low, high, bins + 1, dtype=torch.float64).exp())
        self.register_buffer("losses", torch.zeros(bins, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(bins, dtype=torch.float64))

    @property
    def middles(self) -> Tensor:
        """The geometric middle (bins,) of each bin."""
        return (self.edges[1:] * self.edges[:-1]).sqrt()

    def same_bins(self, edges: Tensor) -> bool:
        """Whether the edges of other bins are these, but for rounding."""
        return edges.shape == self.edges.shape and torch.allclose(edges.to(self.edges), self.edges, rtol=1e-2)

    def update(self, t: Tensor, loss: Tensor) -> None:
        place = (torch.searchsorted(self.edges, t.double().to(self.edges.device)) - 1).clamp(0, len(self.losses) - 1)
        sums = torch.zeros_like(torch.stack([self.losses, self.counts]))
        sums[0].index_add_(0, place, loss.double().to(sums.device))
        sums[1].index_add_(0, place, torch.ones_like(place, dtype=torch.float64))
        self.losses.mul_(self.keep).add_(sums[0])
        self.counts.mul_(self.keep).add_(sums[1])

    def curve(self) -> Optional[Tuple[Tensor, Tensor]]:
        """The bins' t (k,) and mean loss (k,), made to rise, of those that were met; None before there are three."""
        met = self.counts > 1e-3
        if met.sum() < 3:
            return None
        return self.middles[met], isotonic(self.losses[met] / self.counts[met], self.counts[met])

    def fitted_cdf(self, knots: Tensor, times: Tensor, losses: Tensor) -> Tensor:
        """The unnormalised CDF (n,) at rising times (n,), before its share of a uniform one, fitted to a `curve`."""
        raise NotImplementedError

    def knots(self) -> Tuple[Tensor, Tensor]:
        """Rising times and the CDF there, between which it is linear."""
        times = self.edges
        uniform = super().cdf(times)
        curve = self.curve()
        if curve is None:
            return times, uniform
        fitted = self.fitted_cdf(times, *curve)
        fitted = (fitted - fitted[0]) / (fitted[-1] - fitted[0])
        return times, self.uniform_share * uniform + (1 - self.uniform_share) * fitted

    def cdf(self, t: Tensor) -> Tensor:
        return self._between(t, *self.knots())

    def quantile(self, u: Tensor) -> Tensor:
        return self._between(u, *reversed(self.knots()))

    @staticmethod
    def _between(x: Tensor, known_x: Tensor, known_y: Tensor) -> Tensor:
        found = interpolate(x.double().reshape(1, -1).to(known_x.device), known_x[None], known_y[None])
        return found.reshape(x.shape).to(x.device)


class TimeWarp(FittedTimes):
    """CDCD's time warping (Dieleman et al., 2022, section 3.2): the loss itself is the unnormalised CDF, piece-wise
    linear in t."""

    def fitted_cdf(self, knots: Tensor, times: Tensor, losses: Tensor) -> Tensor:
        losses = rising(losses[None])
        return interpolate(knots.clamp(times[0], times[-1])[None], times[None], losses)[0]


class GumbelTimes(FittedTimes):
    """An information-uniform law (LangFlow, arXiv 2604.11748): log t follows a Gumbel law, cut to [t_min, t_max], whose
    location and scale are fitted to the loss: the increments of the loss are taken for probabilities of log t, and the
    law has their mean and variance."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Tells its file from that of another law that is fitted to the same losses.
        self.register_buffer("gumbel", torch.ones((), dtype=torch.float64))

    @staticmethod
    def location_and_scale(times: Tensor, losses: Tensor) -> Tuple[Tensor, Tensor]:
        """mu and beta of F(t) = exp(-exp(-(log t - mu) / beta)), fitted to a curve."""
        gains = rising(losses[None])[0].diff()
        middles = (times[1:] * times[:-1]).sqrt().log()
        share = gains / gains.sum()
        mean = (share * middles).sum()
        variance = (share * (middles - mean) ** 2).sum().clamp(min=1e-4)
        scale = (6 * variance).sqrt() / torch.pi
        return mean - EULER_GAMMA * scale, scale

    def fitted_cdf(self, knots: Tensor, times: Tensor, losses: Tensor) -> Tensor:
        location, scale = self.location_and_scale(times, losses)
        return torch.exp(-torch.exp(-(knots.log() - location) / scale))


def warped_grid(law: UniformTimes, num_steps: int) -> Tensor:
    """Falling times (num_steps + 1,) from t_max to t_min, evenly spaced in u = F(t), then 0 (CDCD, section 3.2)."""
    u = torch.linspace(1, 0, num_steps, dtype=torch.float64, device="cpu")
    return torch.cat([law.quantile(u), u.new_zeros(1)])


def isotonic(values: Tensor, weights: Tensor) -> Tensor:
    """The nearest curve (n,) that nowhere falls, by weighted squares: neighbours that fall are pooled."""
    pools = []
    for value, weight in zip(values.tolist(), weights.tolist()):
        size = 1
        while pools and pools[-1][0] >= value:
            before, mass, count = pools.pop()
            value, weight = (before * mass + value * weight) / (mass + weight), mass + weight
            size += count
        pools.append((value, weight, size))
    return torch.cat([values.new_full((size,), value) for value, _, size in pools])


TIME_LAWS: Dict[str, type] = {
    "uniform": UniformTimes, "low-discrepancy": UniformTimes, "time-warp": TimeWarp, "gumbel": GumbelTimes,
}
