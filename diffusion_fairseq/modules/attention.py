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

    def forward(self, x: Tensor, packing: Packing, memory: KeyValue, mask: Optional[Tensor] = None,
                shared: Optional[KeyValue] = None, shared_mask: Optional[Tensor] = None) -> Tensor:
        """Attend from N * B packed rows x (n, dim) over the memory of B contexts; row b * N + i belongs to context b.

        The N rows of one context are folded into the query length: its keys and values are neither copied nor read
        N times.

        Args:
            mask: (B, S) bool, True where the context may be attended; None: everywhere.
            shared: a second memory, of fewer contexts, that is attended to beside the first in one softmax.
            shared_mask: its mask.
        """
        batch = memory.key.size(0)
        query = packing.spread(self.query(x))
        heads = self._split(query.view(batch, -1, x.size(-1)))
        heads = rotated(heads) if self.rotary else heads
        if shared is None:
            attended = F.scaled_dot_product_attention(
                heads, memory.key, memory.value, attn_mask=None if mask is None else mask[:, None, None, :],
                dropout_p=self.dropout if self.training else 0.0,
            )
        else:
            attended = self._attend_both(heads, memory, mask, shared, shared_mask)
        return self.out(packing.pack(attended.transpose(1, 2).reshape(query.shape)))

    def _attend_both(self, query: Tensor, own: KeyValue, mask: Optional[Tensor], shared: KeyValue,
                     shared_mask: Optional[Tensor]) -> Tensor:
        """Attend from query (R, heads, L, d) over one's own context each and over shared ones: to put the keys of both
        side by side would copy the shared ones for every row, at every step."""
        lengths = own.key.size(2), shared.key.size(2)

        def folded(x: Tensor) -> Tensor:
            """(N * B, heads, L, ...) -> (B, heads, N * L, ...)."""
            return x.unflatten(0, (len(shared.key), -1)).transpose(1, 2).flatten(2, 3)

        def unfolded(x: Tensor) -> Tensor:
            return x.unflatten(2, (-1, query.size(2))).transpose(1, 2).flatten(0, 1)

        query = query * query.size(-1) ** -0.5
        scores = (_scores(query, own.key, mask), unfolded(_scores(folded(query), shared.key, shared_mask)))
        weights = torch.cat(scores, dim=-1).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        within, beside = F.dropout(weights, self.dropout, self.training).split(lengths, dim=-1)
        return within @ own.value + unfolded(folded(beside) @ shared.value)


def _scores(query: Tensor, key: Tensor, mask: Optional[Tensor]) -> Tensor:
    """Scores (B, heads, L, S) of keys (B, heads, S, d), those outside the mask (B, S) at minus infinity."""
    scores = query @ key.transpose(-1, -2)
    return scores if mask is None else scores.masked_fill(~mask[:, None, None, :], -torch.inf)


def rotated(x: Tensor, max_period: float = 10000.0) -> Tensor:
    """Rotary position embedding (Su et al., 2021, eq. 34) of x (B, heads, L, d), d even, at positions 0 .. L - 1."""
    half = x.size(-1) // 2
    frequencies = max_period ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = torch.arange(x.size(-2), device=x.device, dtype=torch.float32)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
