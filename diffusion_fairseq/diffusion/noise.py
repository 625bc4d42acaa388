"""Gaussian noise as a pure function of (stream, counter): the same whatever batch a sentence falls in.

Every element is drawn from SplitMix64 (Steele et al., 2014) at its own counter, so that no state is kept, rows
may leave or change places in a batch, and nothing crosses between host and device. Integers wrap at 64 bits.
"""

import math
from typing import Optional

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 that has the bits of an unsigned 64-bit constant."""
    return value - (1 << 64) if value >= 1 << 63 else value


GOLDEN_GAMMA = _signed(0x9E3779B97F4A7C15)
MIX_1 = _signed(0xBF58476D1CE4E5B9)
MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: int64 -> int64, a bijection that scatters all bits."""
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


def combine(key: Tensor, value) -> Tensor:
    """A new stream key from a key (int64 tensor) and a number (int or int64 tensor)."""
    if not isinstance(value, Tensor):
        value = torch.full((), value, dtype=torch.int64, device=key.device)  # a copy would wait for the device
    return mix(key + mix(value * GOLDEN_GAMMA + 1))


def sequence_keys(tokens: Tensor, mask: Tensor, seed: int) -> Tensor:
    """A stream key for each row of tokens.

    Args:
        tokens: (B, S) int64.
        mask: (B, S) bool, True where a token counts: padding on either side changes nothing.
        seed: any integer.
    Returns:
        (B,) int64.
    """
    position = mask.cumsum(dim=1)
    scattered = mix(mix(tokens * GOLDEN_GAMMA + 1) + position * MIX_1)
    return combine((scattered * mask).sum(dim=1), seed)


def _share(bits: Tensor) -> Tensor:
    """A number in (0, 1], float32, from the high bits of an int64: 24 fill the mantissa, and a half keeps 0 out."""
    return (_shift_right(bits, 40).float() + 0.5).mul_(2.0**-24)


def gaussian_noise(keys: Tensor, counter: int, length: int, dim: int) -> Tensor:
    """Standard Gaussian noise (B, length, dim), float32; element (b, l, d) depends on (keys[b], counter, l, d) alone.

    Args:
        keys: (B,) int64, one stream a row.
        counter: which draw of the stream (the step index).
        length, dim: positions and latent width; dim must be even (Box-Muller makes pairs).
    Raises:
        ValueError: dim is odd.
    """
    if dim % 2:
        raise ValueError(f"noise is drawn in pairs: the latent dimension must be even, got {dim}")
    index = torch.arange(length * dim // 2, device=keys.device, dtype=torch.int64)
    bits = mix(combine(keys, counter)[:, None] + (index + 1) * GOLDEN_GAMMA)
    radius = _share(bits).log_().mul_(-2).sqrt_()
    angle = (bits & 0xFFFFFF).float().mul_(2 * math.pi * 2.0**-24)
    pair = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)
    return pair.view(len(keys), length, dim)


class Draws:
    """The random numbers of a pass over a batch: here torch's, from a generator or, where there is none, its own."""

    def __init__(self, generator: Optional[torch.Generator] = None):
        self.generator = generator

    def normal(self, like: Tensor) -> Tensor:
        """Standard Gaussian noise of the shape (B, L, D) of a tensor, float32."""
        return torch.randn(like.shape, generator=self.generator, device=like.device)

    def uniform(self, like: Tensor) -> Tensor:
        """A number in [0, 1) for each row (B,) of a tensor."""
        return torch.rand(len(like), generator=self.generator, device=like.device)


class RowDraws(Draws):
    """Those of each row are a function of its own key (B,) int64: the same whatever batch the row falls in."""

    def __init__(self, keys: Tensor):
        super().__init__()
        self.keys, self.drawn = keys, 0

    def normal(self, like: Tensor) -> Tensor:
        self.drawn += 1
        return gaussian_noise(self.keys.to(like.device), self.drawn, like.size(1), like.size(2))

    def uniform(self, like: Tensor) -> Tensor:
        self.drawn += 1
        return _share(combine(self.keys.to(like.device), self.drawn))
