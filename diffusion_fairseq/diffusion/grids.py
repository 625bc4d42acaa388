"""Where the sampling times lie: K fractions of the way from the noisiest level to the cleanest.

A grid maps u in [0, 1] (0: the noisiest level, 1: the cleanest) to the ratio sigma / alpha or to t itself.
"""

from typing import Callable, Dict

import torch
from torch import Tensor

KARRAS_RHO = 7.0  # Karras et al. (2022), table 1


def _fractions(num_steps: int) -> Tensor:
    """u (K,), from 0 to 1; a single step starts at the noisiest level."""
    return torch.linspace(0, 1, num_steps, dtype=torch.float64, device="cpu")


def uniform(u: Tensor, t: Tensor, ratio: Tensor) -> Tensor:
    """Evenly spaced t."""
    return t[-1] + u * (t[0] - t[-1])


def quadratic(u: Tensor, t: Tensor, ratio: Tensor) -> Tensor:
    """t evenly spaced in its square root: denser near the clean end (Song et al., 2021, appendix D.2)."""
    return (t[-1].sqrt() + u * (t[0].sqrt() - t[-1].sqrt())) ** 2


def karras(u: Tensor, t: Tensor, ratio: Tensor) -> Tensor:
    """sigma / alpha evenly spaced in its 7th root (Karras et al., 2022, eq. 5)."""
    root = ratio ** (1 / KARRAS_RHO)
    return _times_of(((root[-1] + u * (root[0] - root[-1])) ** KARRAS_RHO), t, ratio)


def log_snr(u: Tensor, t: Tensor, ratio: Tensor) -> Tensor:
    """log(alpha^2 / sigma^2) evenly spaced (Lu et al., 2022, section 3.2)."""
    log = ratio.log()
    return _times_of((log[-1] + u * (log[0] - log[-1])).exp(), t, ratio)


def _times_of(wanted: Tensor, t: Tensor, ratio: Tensor) -> Tensor:
    """The t at which sigma / alpha has the wanted values, between the rows of a table by linear interpolation."""
    upper = torch.searchsorted(ratio, wanted.contiguous()).clamp(1, len(ratio) - 1)
    below, above = ratio[upper - 1], ratio[upper]
    share = ((wanted - below) / (above - below)).clamp(0, 1)
    return t[upper - 1] + share * (t[upper] - t[upper - 1])


# Each takes u (K,) and a table of levels, t and sigma / alpha (both rising), and gives K falling times.
GRIDS: Dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "uniform": uniform, "quadratic": quadratic, "karras": karras, "log-snr": log_snr,
}


def times(name: str, num_steps: int, t: Tensor, ratio: Tensor) -> Tensor:
    """K falling times (K,) float64 of a grid, from the last row of the table to the first.

    Args:
        name: a key of GRIDS.
        t, ratio: (n,) rising; sigma / alpha at t.
    Raises:
        ValueError: unknown grid.
    """
    if name not in GRIDS:
        raise ValueError(f"unknown sampling grid {name!r}: known are {', '.join(GRIDS)}")
    if len(t) == 1:
        return t.double()
    return GRIDS[name](_fractions(num_steps), t.double(), ratio)


def distinct_indices(times: Tensor) -> Tensor:
    """The nearest integers (K,) to falling times, moved apart where they meet, none below 0."""
    indices, previous = [], None
    for place, time in enumerate(times.round().long().tolist()):
        index = max(time, len(times) - 1 - place)
        previous = index if previous is None else min(index, previous - 1)
        indices.append(previous)
    return torch.tensor(indices, device="cpu")
