"""Multi-head attention on torch's scaled_dot_product_attention, with a memory that is computed once."""

from typing import NamedTuple, Optional

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

    def memory(self, context: Tensor, packing: Packing) -> KeyValue:
        """Keys and values of a packed context (n, context_dim)."""
        key, value = (self._split(packing.unpack(layer(context))) for layer in (self.key, self.value))
        return KeyValue(key, value)

    def forward(self, x: Tensor, packing: Packing, memory: KeyValue, mask: Optional[Tensor] = None) -> Tensor:
        """Attend from N * B packed rows x (n, dim) over the memory of B contexts; row b * N + i belongs to context b.

        The N rows of one context are folded into the query length: its keys and values are neither copied nor read
        N times.

        Args:
            mask: (B, S) bool, True where the context may be attended; None: everywhere.
        """
        batch = memory.key.size(0)
        query = packing.unpack(self.query(x))
        attended = F.scaled_dot_product_attention(
            self._split(query.view(batch, -1, x.size(-1))), memory.key, memory.value,
            attn_mask=None if mask is None else mask[:, None, None, :],
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.out(packing.pack(attended.transpose(1, 2).reshape(query.shape)))
