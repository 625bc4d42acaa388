"""Training laws of t: draw(n) -> (t, weight), update(t, loss)."""

from typing import Dict, Optional, Tuple

import torch
from torch import Generator, Tensor, nn


class UniformTimesteps(nn.Module):
    """t uniform in {0 .. T-1}, weights 1."""

    def __init__(self, num_timesteps: int):
        super().__init__()
        self.num_timesteps = num_timesteps

    def draw(self, n: int, device: torch.device, generator: Optional[Generator] = None) -> Tuple[Tensor, Tensor]:
        """n timesteps (n,) int64 and their importance weights (n,) float32."""
        t = torch.randint(self.num_timesteps, (n,), generator=generator, device=device)
        return t, torch.ones(n, device=device)

    def spread(self, u: Tensor) -> Tensor:
        """The timesteps (n,) int64 at shares u (n,) in [0, 1) of the way from 0 to T."""
        return (u * self.num_timesteps).long()

    def update(self, t: Tensor, loss: Tensor) -> None:
        """Learn from the losses (n,) met at the timesteps t (n,); a fixed law learns nothing."""


class LowDiscrepancyTimesteps(UniformTimesteps):
    """t stratified: one offset for the batch, then even spacing (Kingma et al., 2021, appendix I.1)."""

    def draw(self, n: int, device: torch.device, generator: Optional[Generator] = None) -> Tuple[Tensor, Tensor]:
        offset = torch.rand(1, generator=generator, device=device, dtype=torch.float64)
        u = (torch.arange(n, device=device, dtype=torch.float64) / n + offset) % 1
        # Batches are sorted by length: shuffled, so that t does not follow the length.
        t = (u * self.num_timesteps).long()[torch.randperm(n, generator=generator, device=device)]
        return t, torch.ones(n, device=device)


class LossSecondMomentTimesteps(UniformTimesteps):
    """p(t) ~ sqrt(E[loss_t^2]) over the last `history` losses (Nichol & Dhariwal, 2021, section 3.3).

    Uniform until every t has `history` losses, and where all are 0; mixed with a uniform share; the weights
    1 / (T p(t)) keep the expected loss unchanged.
    """

    def __init__(self, num_timesteps: int, history: int = 10, uniform_share: float = 0.001):
        super().__init__(num_timesteps)
        self.uniform_share = uniform_share
        # Floating point, because an average of the weights over updates also averages buffers.
        self.register_buffer("losses", torch.zeros(num_timesteps, history))
        self.register_buffer("counts", torch.zeros(num_timesteps))

    def probabilities(self) -> Tensor:
        """p(t), (T,) float64."""
        if self.counts.min() < self.losses.size(1) or not self.losses.any():
            return torch.full_like(self.counts, 1 / self.num_timesteps, dtype=torch.float64)
        p = self.losses.double().square().mean(dim=1).sqrt()
        return (1 - self.uniform_share) * p / p.sum() + self.uniform_share / self.num_timesteps

    def draw(self, n: int, device: torch.device, generator: Optional[Generator] = None) -> Tuple[Tensor, Tensor]:
        p = self.probabilities().to(device)
        t = torch.multinomial(p, n, replacement=True, generator=generator)
        return t, (1 / (self.num_timesteps * p[t])).float()

    def update(self, t: Tensor, loss: Tensor) -> None:
        order = torch.argsort(t, stable=True)
        t, loss = t[order].long(), loss[order]
        # The r-th loss of a timestep in this batch goes r places on in that timestep's ring.
        first = torch.searchsorted(t, t)
        rank = torch.arange(len(t), device=t.device) - first
        slot = (self.counts[t].long() + rank) % self.losses.size(1)
        # More than a ring's worth of one timestep: the last ones win, in order.
        last = torch.cat([t[1:] != t[:-1], t.new_ones(1, dtype=torch.bool)])
        total = rank[last] + 1
        keep = rank >= (torch.repeat_interleave(total, total) - self.losses.size(1))
        self.losses[t[keep], slot[keep]] = loss[keep].to(self.losses.dtype)
        self.counts[t[last]] += total


TIMESTEP_SAMPLERS: Dict[str, type] = {
    "uniform": UniformTimesteps,
    "low-discrepancy": LowDiscrepancyTimesteps,
    "loss-second-moment": LossSecondMomentTimesteps,
}
