"""Noise schedules: how much signal and how much noise x_t holds at time t."""

import math
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from diffusion_fairseq.diffusion.grids import distinct_indices
from diffusion_fairseq.diffusion.grids import times as grid_times

CLEAN = -1  # the time of x_0 itself in a discrete schedule: alpha 1, sigma 0
MAX_BETA = 0.999
POINTS = "points"  # the schedule that is drawn through given points


class NoiseLevel(NamedTuple):
    """x_t = alpha * x_0 + sigma * eps, in float64.

    alpha and sigma have the shape of t, () or (B,); those of a schedule with levels of its own for each of L positions
    (B, L), or (1, L) where t is ().
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    def cut(self, length: int) -> "NoiseLevel":
        """The level of the first `length` positions, where each has its own; further ones have the last one's."""
        if self.alpha.dim() == self.t.dim():
            return self
        places = torch.arange(length, device=self.alpha.device).clamp(max=self.alpha.size(-1) - 1)
        return self._replace(alpha=self.alpha[..., places], sigma=self.sigma[..., places])


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


def _falling_betas(num_timesteps: int, gamma: float) -> Tensor:
    """The first piece of the piece-wise linear schedules."""
    return _linspace(gamma * 1e-4 + 0.01, gamma * 1e-4, min(10, num_timesteps - 1))


def pw_lin_betas(num_timesteps: int, gamma: float) -> Tensor:
    """Piece-wise linear: 10 falling betas, then the linear schedule, as in minimal-text-diffusion, on which
    "Stabilizing Diffusion LMs" builds."""
    falling = _falling_betas(num_timesteps, gamma)
    return torch.cat([falling, linear_betas(num_timesteps - len(falling), gamma)])


def pw_lin_paper_betas(num_timesteps: int, gamma: float) -> Tensor:
    """The equation of "Stabilizing Diffusion LMs", section 4.1: pw_lin whose second piece begins 0.01 higher."""
    falling = _falling_betas(num_timesteps, gamma)
    return torch.cat([falling, _linspace(gamma * 1e-4 + 0.01, gamma * 0.02, num_timesteps - len(falling))])


BETAS: Dict[str, Callable[[int, float], Tensor]] = {
    "linear": linear_betas,
    "cosine": cosine_betas,
    "sqrt": sqrt_betas,
    "trunc_cos": trunc_cos_betas,
    "trunc_lin": trunc_lin_betas,
    "pw_lin": pw_lin_betas,
    "pw_lin_paper": pw_lin_paper_betas,
}
SCHEDULES = (*BETAS, POINTS)
SCALED = ("linear", "trunc_lin", "pw_lin", "pw_lin_paper")  # by gamma


def parse_points(text: str) -> List[Tuple[float, float]]:
    """The points (u, alpha-bar) of "0=0.9999,0.3=0.5,1=0.0001".

    Raises:
        ValueError: another form; u that do not rise from 0 to 1; alpha-bars that do not fall between 1 and 0.
    """
    try:
        points = [(float(u), float(alpha_bar)) for u, alpha_bar in (point.split("=") for point in text.split(","))]
    except ValueError:
        raise ValueError(f"points are written u=alpha-bar, with commas between, as in 0=0.9999,0.3=0.5,1=0.0001; "
                         f"got {text!r}") from None
    times, alpha_bars = zip(*points)
    if times[0] != 0 or times[-1] != 1 or not all(before < after for before, after in zip(times, times[1:])):
        raise ValueError(f"the points' times must rise from 0 to 1, got {', '.join(f'{u:g}' for u in times)}")
    # Level 0 without noise would be x_0 itself, from which no step leads to x_0.
    bounded = (1, *alpha_bars, 0)
    if not all(before > after for before, after in zip(bounded, bounded[1:])):
        raise ValueError("the points' alpha-bars must fall, below 1 and above 0, got "
                         + ", ".join(f"{value:g}" for value in alpha_bars))
    return points


def points_betas(points: List[Tuple[float, float]], num_timesteps: int) -> Tensor:
    """alpha-bar linear in u = t / (T - 1) between points (u, alpha-bar); beta_t = 1 - abar_t / abar_{t-1}."""
    times, alpha_bars = torch.tensor(points, dtype=torch.float64, device="cpu").t().contiguous()
    u = _linspace(0, 1, num_timesteps)
    after = torch.searchsorted(times, u).clamp(1, len(times) - 1)
    share = (u - times[after - 1]) / (times[after] - times[after - 1])
    alpha_bar = alpha_bars[after - 1].lerp(alpha_bars[after], share)
    return 1 - alpha_bar / torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])


class DiscreteSchedule:
    """A variance-preserving schedule given by a table of betas.

    Times are integers 0 .. T-1, with CLEAN (-1) for x_0 itself. Tables are float64.

    Args:
        betas: (T,) float64, each in [0, 1), not all 0.
    Raises:
        ValueError: a beta lies outside [0, 1), there is no noise, or they leave nothing of x_0.
    """

    def __init__(self, betas: Tensor):
        if betas.numel() == 0 or not (betas.min() >= 0 and 0 < betas.max() < 1):
            raise ValueError(
                f"a noise schedule needs betas in [0, 1), some above 0, got {betas.numel()} betas"
                + (f" from {betas.min():.3g} to {betas.max():.3g}: take more timesteps or another gamma"
                   if betas.numel() else "")
            )
        self.betas = betas
        self.alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        # Solvers divide by alpha, in the dtype of x_t.
        if self.alphas_cumprod[-1].sqrt() < torch.finfo(torch.float32).tiny:
            raise ValueError(f"a noise schedule of {betas.numel()} betas up to {betas.max():.3g} leaves no signal at "
                             "its last level: take fewer timesteps or a smaller gamma")
        # CLEAN = -1 indexes the last row, so that no time needs a branch.
        clean = torch.ones(1, dtype=betas.dtype, device="cpu")
        alpha_bar = torch.cat([self.alphas_cumprod, clean])
        self._tables = {torch.device("cpu"): (alpha_bar.sqrt(), (1 - alpha_bar).sqrt())}

    @property
    def num_timesteps(self) -> int:
        """T."""
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
        level = self.at(torch.arange(self.num_timesteps, device="cpu"))
        return strided_grid(num_steps, name, level.sigma / level.alpha)


def strided_grid(num_steps: int, name: str, ratio: Tensor) -> Tensor:
    """Falling integer times (num_steps + 1,) from T-1 to CLEAN, where a schedule has sigma / alpha = ratio (T,).

    Raises:
        ValueError: num_steps is not in 1 .. T, or the grid is unknown.
    """
    if not 1 <= num_steps <= len(ratio):
        raise ValueError(
            f"the number of diffusion steps must be from 1 to {len(ratio)} "
            f"(the timesteps of the trained schedule), got {num_steps}"
        )
    times = distinct_indices(grid_times(name, num_steps, torch.arange(len(ratio), device="cpu"), ratio))
    return torch.cat([times, torch.tensor([CLEAN], device="cpu")])


class SigmaEqualsT:
    """The variance-exploding schedule alpha = 1, sigma = t (Karras et al., 2022; CDCD, section 3).

    Args:
        t_min, t_max: the smallest and largest noise level that the model is trained on.
    """

    def __init__(self, t_min: float = 1.0, t_max: float = 300.0):
        if not 0 < t_min < t_max < math.inf:
            raise ValueError(f"sigma = t needs 0 < t_min < t_max, both finite, got t_min {t_min}, t_max {t_max}")
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


def build_schedule(
    name: str, num_timesteps: int, gamma: Optional[float] = None, points: Optional[str] = None
) -> DiscreteSchedule:
    """The discrete schedule of a name.

    Args:
        name: one of SCHEDULES.
        num_timesteps: T, at least 1.
        gamma: scale of the betas of those in SCALED; default 1000 / T, as published.
        points: what the schedule of that name is drawn through, as parse_points reads it.
    Raises:
        ValueError: unknown name, or numbers that give no schedule.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown noise schedule {name!r}: known are {', '.join(SCHEDULES)}")
    if num_timesteps < 1:
        raise ValueError(f"the number of diffusion timesteps must be at least 1, got {num_timesteps}")
    if (name == POINTS) != (points is not None):
        raise ValueError(f"the schedule {POINTS} is drawn through points: give both or neither")
    if gamma is not None and name not in SCALED:
        raise ValueError(f"the schedule {name} has no scale (gamma): only {', '.join(SCALED)} have")
    if points is not None:
        return DiscreteSchedule(points_betas(parse_points(points), num_timesteps))
    return DiscreteSchedule(BETAS[name](num_timesteps, 1000 / num_timesteps if gamma is None else gamma))
