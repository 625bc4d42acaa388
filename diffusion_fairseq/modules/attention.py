"""Multi-head attention on torch's scaled_dot_product_attention, with a memory that is computed once."""

from typing import NamedTuple, Optional

import torch.nn.functional as F
from torch import Tensor, nn


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
    """

    def __init__(self, dim: int, heads: int, context_dim: Optional[int] = None, bias: bool = True,
                 dropout: float = 0.0):
        super().__init__()
        if dim % heads:
            raise ValueError(f"the width {dim} must be a multiple of the number of attention heads {heads}")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key = nn.Linear(context_dim or dim, dim, bias=bias)
        self.value = nn.Linear(context_dim or dim, dim, bias=bias)
        self.out = nn.Linear(dim, dim)

    def _split(self, x: Tensor) -> Tensor:
        """(B, S, dim) -> (B, heads, S, head width)."""
        return x.view(x.size(0), x.size(1), self.heads, -1).transpose(1, 2)

    def memory(self, context: Tensor) -> KeyValue:
        """Keys and values of a context (B, S, context_dim)."""
        return KeyValue(self._split(self.key(context)), self._split(self.value(context)))

    def forward(self, x: Tensor, memory: KeyValue, mask: Optional[Tensor] = None) -> Tensor:
        """Attend from x (N * B, L, dim) over the memory of B contexts; row b * N + n belongs to context b.

        The N sequences of one context are folded into the query length: its keys and values are neither copied
        nor read N times.

        Args:
            mask: (B, S) bool, True where the context may be attended; None: everywhere.
        """
        batch = memory.key.size(0)
        query = self._split(self.query(x).view(batch, -1, x.size(-1)))
        attended = F.scaled_dot_product_attention(
            query, memory.key, memory.value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(attended.transpose(1, 2).reshape(x.shape))
