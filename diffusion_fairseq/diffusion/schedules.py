"""Noise schedules: how much signal and how much noise x_t holds at time t."""

import math
from typing import Callable, Dict, NamedTuple, Optional

import torch
from torch import Tensor

from diffusion_fairseq.diffusion.grids import distinct_indices
from diffusion_fairseq.diffusion.grids import times as grid_times

CLEAN = -1  # the time of x_0 itself in a discrete schedule: alpha 1, sigma 0
MAX_BETA = 0.999


class NoiseLevel(NamedTuple):
    """x_t = alpha * x_0 + sigma * eps; alpha and sigma have the shape of t (float64)."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor


def _betas_from_alpha_bar(alpha_bar: Callable[[float], float], num_timesteps: int) -> Tensor:
    """beta_i = 1 - abar((i+1)/T) / abar(i/T), at most 0.999 (Nichol & Dhariwal, 2021, section 3.2)."""
    values = [alpha_bar(i / num_timesteps) for i in range(num_timesteps + 1)]
    betas = [min(1 - after / before, MAX_BETA) for before, after in zip(values, values[1:])]
    return torch.tensor(betas, dtype=torch.float64, device="cpu")


def _linspace(start: float, end: float, num: int) -> Tensor:
    return torch.linspace(start, end, num, dtype=torch.float64, device="cpu")


def linear_betas(num_timesteps: int, gamma: float) -> Tensor:
    """Ho et al. (2020), section 4; gamma = 1000 / T keeps the same noise for any T."""
    return _linspace(gamma * 1e-4, gamma * 0.02, num_timesteps)


def cosine_betas(num_timesteps: int, gamma: float) -> Tensor:
    """Nichol & Dhariwal (2021), eq. 17."""
    return _betas_from_alpha_bar(lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2, num_timesteps)


def sqrt_betas(num_timesteps: int, gamma: float) -> Tensor:
    """Li et al. (2022, Diffusion-LM), appendix A: abar(u) = 1 - sqrt(u + 1e-4)."""
    return _betas_from_alpha_bar(lambda u: 1 - math.sqrt(u + 1e-4), num_timesteps)


def trunc_cos_betas(num_timesteps: int, gamma: float) -> Tensor:
    """Cosine that starts noisy: beta_0 = 1 - abar(0), then the usual rule one index to the left."""

    def alpha_bar(u: float) -> float:
        return math.cos((u + 0.1) / 1.1 * math.pi / 2) ** 2

    first = torch.tensor([min(1 - alpha_bar(0), MAX_BETA)], dtype=torch.float64, device="cpu")
    return torch.cat([first, _betas_from_alpha_bar(alpha_bar, num_timesteps)[:-1]])


def trunc_lin_betas(num_timesteps: int, gamma: float) -> Tensor:
    """Linear, every beta raised by 0.01: the rise is not scaled by gamma, as published."""
    return linear_betas(num_timesteps, gamma) + 0.01


def pw_lin_betas(num_timesteps: int, gamma: float) -> Tensor:
    """Piece-wise linear (Stabilizing Diffusion LMs, section 3): 10 falling betas, then the linear schedule."""
    head = min(10, num_timesteps - 1)
    falling = _linspace(gamma * 1e-4 + 0.01, gamma * 1e-4, head)
    return torch.cat([falling, linear_betas(num_timesteps - head, gamma)])


BETAS: Dict[str, Callable[[int, float], Tensor]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "sqrt": sqrt_betas,
    "trunc_cos": trunc_cos_betas,
    "trunc_lin": trunc_lin_betas,
    "pw_lin": pw_lin_betas,
}


class DiscreteSchedule:
    """A variance-preserving schedule given by a table of betas.

    Times are integers 0 .. T-1, with CLEAN (-1) for x_0 itself. Tables are float64.

    Args:
        betas: (T,) float64, each in [0, 1).
    Raises:
        ValueError: a beta lies outside [0, 1).
    """

    def __init__(self, betas: Tensor):
        if betas.numel() == 0 or betas.min() < 0 or betas.max() >= 1:
            raise ValueError(
                f"a noise schedule needs betas in [0, 1), got {betas.numel()} betas"
                + (f" from {betas.min():.3g} to {betas.max():.3g}: take more timesteps or a smaller gamma"
                   if betas.numel() else "")
            )
        self.betas = betas
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        # CLEAN = -1 indexes the last row, so that no time needs a branch.
        clean = torch.ones(1, dtype=betas.dtype, device="cpu")
        alpha_bar = torch.cat([self.alphas_cumprod, clean])
        self._tables = {torch.device("cpu"): (alpha_bar.sqrt(), (1 - alpha_bar).sqrt())}

    @property
    def num_timesteps(self) -> int:
        return self.betas.numel()

    def at(self, t: Tensor) -> NoiseLevel:
        """The level at integer times t (any shape), on the device of t."""
        if t.device not in self._tables:
            self._tables[t.device] = tuple(table.to(t.device) for table in self._tables[torch.device("cpu")])
        alphas, sigmas = self._tables[t.device]
        return NoiseLevel(t, alphas[t], sigmas[t])

    def grid(self, num_steps: int, name: str = "uniform") -> Tensor:
        """Falling times (num_steps + 1,) from T-1 to CLEAN: a subset of the trained levels.

        Args:
            name: how they are spaced, a key of GRIDS.
        Raises:
            ValueError: num_steps is not in 1 .. T, or the grid is unknown.
        """
        if not 1 <= num_steps <= self.num_timesteps:
            raise ValueError(
                f"the number of diffusion steps must be from 1 to {self.num_timesteps} "
                f"(the timesteps of the trained schedule), got {num_steps}"
            )
        level = self.at(torch.arange(self.num_timesteps, device="cpu"))
        times = distinct_indices(grid_times(name, num_steps, level.t, level.sigma / level.alpha))
        return torch.cat([times, torch.tensor([CLEAN], device="cpu")])


class SigmaEqualsT:
    """The variance-exploding schedule alpha = 1, sigma = t (Karras et al., 2022; CDCD, section 3).

    Args:
        t_min, t_max: the smallest and largest noise level that the model is trained on.
    """

    def __init__(self, t_min: float = 1.0, t_max: float = 300.0):
        if not 0 < t_min < t_max:
            raise ValueError(f"sigma = t needs 0 < t_min < t_max, got t_min {t_min}, t_max {t_max}")
        self.t_min, self.t_max = t_min, t_max

    def at(self, t: Tensor) -> NoiseLevel:
        """The level at times t (any shape, float)."""
        t = t.to(torch.float64)
        return NoiseLevel(t, torch.ones_like(t), t)

    def grid(self, num_steps: int, name: str = "uniform") -> Tensor:
        """Falling times (num_steps + 1,) from t_max to t_min, spaced by a key of GRIDS, then 0."""
        if num_steps < 1:
            raise ValueError(f"the number of diffusion steps must be at least 1, got {num_steps}")
        # Two rows are a whole table where sigma / alpha is t itself.
        ends = torch.tensor([self.t_min, self.t_max], dtype=torch.float64, device="cpu")
        return torch.cat([grid_times(name, num_steps, ends, ends), torch.zeros(1, dtype=torch.float64)])


def build_schedule(name: str, num_timesteps: int, gamma: Optional[float] = None) -> DiscreteSchedule:
    """The discrete schedule of a name.

    Args:
        name: a key of BETAS.
        num_timesteps: T, at least 1.
        gamma: scale of the betas of linear, trunc_lin and pw_lin; default 1000 / T, as published.
    Raises:
        ValueError: unknown name, or numbers that give no schedule.
    """
    if name not in BETAS:
        raise ValueError(f"unknown noise schedule {name!r}: known are {', '.join(BETAS)}")
    if num_timesteps < 1:
        raise ValueError(f"the number of diffusion timesteps must be at least 1, got {num_timesteps}")
    return DiscreteSchedule(BETAS[name](num_timesteps, 1000 / num_timesteps if gamma is None else gamma))
