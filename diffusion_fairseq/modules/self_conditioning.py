"""Self-conditioning: the network sees its previous estimate of x_0 (Chen et al., 2023, Analog Bits)."""

from typing import Callable, Optional

import torch
from torch import Tensor

from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.modules.half_precision import bounded


def with_previous(x: Tensor, previous: Optional[Tensor]) -> Tensor:
    """Put the previous estimate (or zeros, where there is none yet) beside x: (B, L, D) -> (B, L, 2 D)."""
    return torch.cat([x, torch.zeros_like(x) if previous is None else bounded(previous, x.dtype)], dim=-1)


def first_estimates(
    estimate: Callable[[Tensor], Tensor], xt: Tensor, rate: float, draws: Draws
) -> Tensor:
    """What training feeds as the previous estimate: for a share `rate` of the examples the network's own first
    estimate without gradient, for the others zeros.

    Args:
        estimate: row indices (n,) -> estimates of x_0 (n, L, D); called for the chosen rows alone.
        xt: (B, L, D).
    """
    chosen = draws.uniform(xt) < rate
    previous = torch.zeros_like(xt)
    rows = chosen.nonzero().squeeze(1)
    if len(rows):
        with torch.no_grad():
            previous[rows] = estimate(rows).to(xt.dtype)
        # Under autocast older torch (2.4 does) keeps the half-precision copies of weights from a pass without gradient,
        # and takes them for the pass with gradient, too, whose weights then get none.
        torch.clear_autocast_cache()
    return previous
