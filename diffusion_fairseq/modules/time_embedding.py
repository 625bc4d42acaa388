"""The embedding of the diffusion time."""

import math

import torch
from torch import Tensor, nn

TIME_SCALE = 1000  # the published networks see t * 1000 / T, whatever T is


def sinusoids(t: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    """Sinusoidal features (B, dim) of times (B,): cosines first (Nichol & Dhariwal, 2021); dim must be even."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) / half * torch.arange(half, device=t.device))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Sequential):
    """Sinusoids -> Linear -> SiLU -> Linear: (B,) times to (B, dim).

    Args:
        frequency_dim: width of the sinusoids, even; the hidden layer is four times as wide.
        dim: width of the output.
    """

    def __init__(self, frequency_dim: int, dim: int):
        if frequency_dim % 2:
            raise ValueError(f"the width of the time embedding must be even, got {frequency_dim}")
        super().__init__(nn.Linear(frequency_dim, 4 * frequency_dim), nn.SiLU(), nn.Linear(4 * frequency_dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """Times (B,) -> features (B, dim), in the dtype of the weights."""
        return super().forward(sinusoids(t, self[0].in_features).to(self[0].weight.dtype))
