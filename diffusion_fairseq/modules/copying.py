"""A pointer to the source in the space of the embeddings."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_fairseq.modules.attention import KeyValue
from diffusion_fairseq.modules.packing import Packing


class CopyHead(nn.Module):
    """Moves an estimate of x0 to the embeddings of source tokens: the pointer-generator's mixture (See et al., 2017,
    eq. 9) of vectors in place of probabilities.

    Args:
        dim: width of the denoiser and of the encoded source.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.gate = nn.Linear(dim, 1)

    def memory(self, hidden: Tensor, embedded: Tensor, packing: Packing) -> KeyValue:
        """What is pointed at: keys (B, 1, S, dim) of the packed source (n, dim), its embeddings (B, 1, S, D) as values,
        of packed ones (n, D)."""
        return KeyValue(*(packing.spread(x).unsqueeze(1) for x in (self.key(hidden), embedded)))

    def forward(self, x: Tensor, estimate: Tensor, packing: Packing, memory: KeyValue,
                mask: Optional[Tensor]) -> Tensor:
        """The estimates (n, D) of N * B packed rows x (n, dim), each between what it was and the mean of the embeddings
        that its position points at; mask (B, S) bool, True where a source may be pointed at."""
        x = self.norm(x)
        query = packing.spread(self.query(x))
        folded = query.view(len(memory.key), 1, -1, query.size(-1))
        copied = F.scaled_dot_product_attention(folded, memory.key, memory.value,
                                                attn_mask=None if mask is None else mask[:, None, None, :])
        copied = packing.pack(copied.reshape(*query.shape[:2], -1))
        return estimate + self.gate(x).sigmoid() * (copied - estimate)
