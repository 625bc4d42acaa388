"""Multi-head attention on torch's scaled_dot_product_attention, with a memory that is computed once."""

from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_fairseq.modules.packing import Packing


class KeyValue(NamedTuple):
    """Keys and values (B, heads, S, head width) of one layer."""

    key: Tensor
    value: Tensor


class Attention(nn.Module):
    """Multi-head attention of queries over a context.

    Args:
        dim: width of queries and output.
        heads: number of heads; divides dim.
        context_dim: width of the context; default dim.
        bias: whether the query, key and value projections have biases (BERT: yes, GENIE's denoiser: no).
        dropout: on the attention weights while training.
        rotary: whether queries and keys are rotated by their positions; for self-attention.
    """

    def __init__(self, dim: int, heads: int, context_dim: Optional[int] = None, bias: bool = True,
                 dropout: float = 0.0, rotary: bool = False):
        super().__init__()
        if dim % heads:
            raise ValueError(f"the width {dim} must be a multiple of the number of attention heads {heads}")
        if rotary and dim // heads % 2:
            raise ValueError(f"rotary positions need heads of an even width, got {dim // heads}")
        self.heads, self.rotary = heads, rotary
        self.dropout = dropout
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(context_dim or dim, dim, bias=bias)
        self.value = nn.Linear(context_dim or dim, dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        """(B, S, dim) -> (B, heads, S, head width)."""
        return x.view(x.size(0), x.size(1), self.heads, -1).transpose(1, 2)

    def memory(self, context: Tensor, packing: Packing) -> KeyValue:
        """Keys and values of a packed context (n, context_dim)."""
        key, value = (self._split(packing.spread(layer(context))) for layer in (self.key, self.value))
        return KeyValue(rotated(key) if self.rotary else key, value)

    def forward(self, x: Tensor, packing: Packing, memory: KeyValue, mask: Optional[Tensor] = None) -> Tensor:
        """Attend from N * B packed rows x (n, dim) over the memory of B contexts; row b * N + i belongs to context b.

        The N rows of one context are folded into the query length: its keys and values are neither copied nor read
        N times.

        Args:
            mask: (B, S) bool, True where the context may be attended; None: everywhere.
        """
        batch = memory.key.size(0)
        query = packing.spread(self.query(x))
        heads = self._split(query.view(batch, -1, x.size(-1)))
        attended = F.scaled_dot_product_attention(
            rotated(heads) if self.rotary else heads, memory.key, memory.value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(packing.pack(attended.transpose(1, 2).reshape(query.shape)))


def rotated(x: Tensor, max_period: float = 10000.0) -> Tensor:
    """Rotary position embedding (Su et al., 2021, eq. 34) of x (B, heads, L, d), d even, at positions 0 .. L - 1."""
    half = x.size(-1) // 2
    frequencies = max_period ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(x.size(-2), device=x.device, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
