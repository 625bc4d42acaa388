"""Transformer layers: the bidirectional encoder's and the cross-attending denoiser's."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_fairseq.modules.attention import Attention, KeyValue
from diffusion_fairseq.modules.packing import Packing

BERT_LAYER_NORM_EPS = 1e-12  # Devlin et al. (2019), released weights
INIT_STD = 0.02  # Devlin et al. (2019)


def init_bert(module: nn.Module) -> None:
    """BERT's initialisation of a linear layer or an embedding; other modules are left alone."""
    if isinstance(module, (nn.Linear, nn.Embedding)):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class EncoderLayer(nn.Module):
    """A bidirectional layer, as in BERT (norm after each residual), or with the norm before.

    Args:
        dim, heads, ffn_dim: widths.
        dropout: on the attention weights and on each residual branch.
        normalize_before: pre-norm; trains from scratch without a long warm-up.
    """

    def __init__(self, dim: int, heads: int, ffn_dim: int, dropout: float, normalize_before: bool = False):
        super().__init__()
        self.normalize_before = normalize_before
        self.attention = Attention(dim, heads, dropout=dropout)
        self.attention_norm = nn.LayerNorm(dim, eps=BERT_LAYER_NORM_EPS)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(), nn.Linear(ffn_dim, dim))
        self.ffn_norm = nn.LayerNorm(dim, eps=BERT_LAYER_NORM_EPS)
        self.dropout = nn.Dropout(dropout)

    def memory(self, x: Tensor, packing: Packing) -> KeyValue:
        """The keys and values of the packed positions x (n, dim) of some rows."""
        return self.attention.memory(self.attention_norm(x) if self.normalize_before else x, packing)

    def forward(self, x: Tensor, packing: Packing, own: Optional[KeyValue] = None, shared: Optional[KeyValue] = None,
                shared_mask: Optional[Tensor] = None) -> Tensor:
        """x (n, dim), the packed positions of some rows; a row's positions attend to one another.

        Args:
            own: the `memory` of x, where it has been computed.
            shared, shared_mask: what they attend to besides, of fewer contexts than rows (see Attention).
        """
        h = self.attention_norm(x) if self.normalize_before else x
        own = self.attention.memory(h, packing) if own is None else own
        attended = self.dropout(self.attention(h, packing, own, packing.mask, shared, shared_mask))
        if self.normalize_before:
            x = x + attended
            return x + self.dropout(self.ffn(self.ffn_norm(x)))
        x = self.attention_norm(x + attended)
        return self.ffn_norm(x + self.dropout(self.ffn(x)))


class GEGLU(nn.Module):
    """Linear -> a * GELU(b) (Shazeer, 2020)."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.projection = nn.Linear(dim, 2 * hidden)

    def forward(self, x: Tensor) -> Tensor:
        """(..., dim) -> (..., hidden)."""
        value, gate = self.projection(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class DenoiserLayer(nn.Module):
    """Pre-norm self-attention, cross-attention over the source, GEGLU feed-forward (GENIE's denoiser).

    Args:
        dim, heads, ffn_dim: widths.
        context_dim: width of the encoder's output.
        dropout: on attention weights, attention outputs, and inside the feed-forward.
    """

    def __init__(self, dim: int, heads: int, ffn_dim: int, context_dim: int, dropout: float):
        super().__init__()
        self.self_norm = nn.LayerNorm(dim)
        self.self_attention = Attention(dim, heads, bias=False, dropout=dropout)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = Attention(dim, heads, context_dim, bias=False, dropout=dropout)
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = nn.Sequential(GEGLU(dim, ffn_dim), nn.Dropout(dropout), nn.Linear(ffn_dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, packing: Packing, memory: KeyValue, memory_mask: Optional[Tensor]) -> Tensor:
        """x (n, dim), the packed positions of N * B rows, over the memory of B sources; memory_mask (B, S) bool, True
        where a source may be attended."""
        h = self.self_norm(x)
        x = x + self.dropout(self.self_attention(h, packing, self.self_attention.memory(h, packing), packing.mask))
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), packing, memory, memory_mask))
        return x + self.ffn(self.ffn_norm(x))
