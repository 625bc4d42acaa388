"""Layers that see the diffusion time through their layer norms."""

from typing import Optional

from torch import Tensor, nn

from diffusion_fairseq.modules.attention import Attention
from diffusion_fairseq.modules.packing import Packing


class ConditionalLayerNorm(nn.Module):
    """Layer norm whose scale and shift are a linear function of a condition (Perez et al., 2018; CDCD, section 4.1);
    an ordinary one at first.

    Args:
        dim: width of what is normalised.
        condition_dim: width of the condition.
    """

    def __init__(self, dim: int, condition_dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = nn.Linear(condition_dim, 2 * dim)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, rows: Optional[Tensor]) -> Tensor:
        """x (n, dim); condition (R, condition_dim), or one row for all; rows (n,) the row of each position, or None
        where there is one condition."""
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        if rows is not None:
            scale, shift = scale[rows], shift[rows]
        return self.norm(x) * (1 + scale) + shift


class ConditionedLayer(nn.Module):
    """A bidirectional pre-norm layer with conditional layer norms.

    Args:
        dim, heads, ffn_dim: widths.
        condition_dim: width of the condition.
        dropout: on the attention weights and on each residual branch.
        rotary: whether queries and keys are rotated by their positions.
    """

    def __init__(self, dim: int, heads: int, ffn_dim: int, condition_dim: int, dropout: float, rotary: bool):
        super().__init__()
        self.attention_norm = ConditionalLayerNorm(dim, condition_dim)
        self.attention = Attention(dim, heads, dropout=dropout, rotary=rotary)
        self.ffn_norm = ConditionalLayerNorm(dim, condition_dim)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(), nn.Linear(ffn_dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing, condition: Tensor, rows: Optional[Tensor]) -> Tensor:
        """x (n, dim), the packed positions of some rows; condition and rows as ConditionalLayerNorm takes them."""
        h = self.attention_norm(x, condition, rows)
        x = x + self.dropout(self.attention(h, packing, self.attention.memory(h, packing), packing.mask))
        return x + self.dropout(self.ffn(self.ffn_norm(x, condition, rows)))
