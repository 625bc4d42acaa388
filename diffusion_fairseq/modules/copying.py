"""A pointer to the source in the space of the embeddings."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_fairseq.modules.attention import KeyValue
from diffusion_fairseq.modules.packing import Packing, filled_up

# Neighbours on either side that a position's pointer listens to.
REACH = 4


class CopyHead(nn.Module):
    """Moves an estimate of x0 to the embeddings of source tokens: the pointer-generator's mixture (See et al., 2017,
    eq. 9) of vectors in place of probabilities.

    What is copied comes in runs: if position i points at source token j, then i + 1 is likely to point at j + 1. A
    position at a time, as autoregressive pointers go, tells the next one where it is; here all are found at once, so
    each score (i, j) has those of (i + k, j + k), |k| <= REACH, added to it with learned weights.

    Args:
        dim: width of the denoiser and of the encoded source.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.run = nn.Parameter(1 - torch.arange(-REACH, REACH + 1).abs() / (REACH + 1))
        self.gate = nn.Linear(dim, 1)

    def memory(self, hidden: Tensor, embedded: Tensor, packing: Packing) -> KeyValue:
        """What is pointed at: keys (B, 1, S', dim) of the packed source (n, dim), S rounded up; its embeddings
        (B, 1, S, D) as values, of packed ones (n, D)."""
        key, value = (packing.spread(x) for x in (self.key(hidden), embedded))
        return KeyValue(filled_up(key, 1).unsqueeze(1), value.unsqueeze(1))

    def scores(self, query: Tensor, key: Tensor, rows: Optional[Tensor], source: Tensor) -> Tensor:
        """(B, N * L, S) of queries (N * B, L, dim) and keys (B, S', dim); rows (N * B, L) and source (B, S) are bool,
        True where there is no padding; rows may be None, where there is none."""
        length, (sources, width) = query.size(1), source.shape
        folded = query.reshape(sources, -1, query.size(-1)) * query.size(-1) ** -0.5
        # Their sums and the softmax in float32, whatever the network computes in.
        scores = (filled_up(folded, 1) @ key.transpose(1, 2))[:, : folded.size(1), :width].float()
        scores = scores.masked_fill(~source[:, None, :], 0.0).view(-1, length, width)
        if rows is not None:
            scores = scores.masked_fill(~rows[:, :, None], 0.0)
        wide = F.pad(scores, (REACH,) * 4)
        summed = sum(weight * wide[:, k : k + length, k : k + width] for k, weight in enumerate(self.run.float()))
        return summed.view(sources, -1, width)

    def forward(self, x: Tensor, estimate: Tensor, packing: Packing, memory: KeyValue,
                mask: Optional[Tensor]) -> Tensor:
        """The estimates (n, D) of N * B packed rows x (n, dim), each between what it was and the mean of the embeddings
        that its position points at; mask (B, S) bool, True where a source may be pointed at."""
        x = self.norm(x)
        query = packing.spread(self.query(x))
        key, value = memory.key.squeeze(1), memory.value.squeeze(1)
        if mask is None:
            mask = torch.ones(value.shape[:2], dtype=torch.bool, device=value.device)
        scores = self.scores(query, key, packing.mask, mask).masked_fill(~mask[:, None, :], -torch.inf)
        weights = filled_up(scores, 2, -torch.inf).softmax(dim=-1).to(value.dtype)
        copied = (filled_up(weights, 1) @ filled_up(value, 1))[:, : scores.size(1)]
        copied = packing.pack(copied.reshape(*query.shape[:2], -1))
        # Widened first: the last of an odd number of vector registers is computed in another way, with other bits.
        return estimate + self.gate(x).repeat(1, estimate.size(-1)).sigmoid() * (copied - estimate)
