"""Rounding latents to tokens and clamping them to embeddings."""

from typing import Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

# Scores that are held at one time: they stay in a processor's cache, where the maximum is found 2 to 3 times as fast.
SCORES_AT_ONCE = 1 << 20
TOKENS_AT_ONCE = 2048  # at least, so that a chunk's matrix product fills the machine


def normalised(embedding: Tensor) -> Tensor:
    """Embeddings (V, D) of length sqrt(D), so that each component has a variance of 1 (CDCD, section 3.1)."""
    return F.normalize(embedding, dim=-1) * embedding.size(-1) ** 0.5


class TokenSearch:
    """Finds the token with the largest score x.e + bias, a chunk of the vocabulary at a time, in float32.

    What does not depend on x is computed once, here.

    Args:
        embedding: (V, D).
        bias: (V,).
        forbidden: (V,) bool, True for tokens that may not be chosen.
    """

    def __init__(self, embedding: Tensor, bias: Tensor, forbidden: Optional[Tensor] = None):
        self.embedding = embedding.float()
        self.bias = bias.float() if forbidden is None else bias.float().masked_fill(forbidden, -torch.inf)

    @classmethod
    def nearest(cls, embedding: Tensor, forbidden: Optional[Tensor] = None) -> "TokenSearch":
        """A search by least exact L2 distance.

        |x - e|^2 = |x|^2 - 2 (x.e - |e|^2 / 2): the nearest embedding has the largest x.e - |e|^2 / 2, so that one
        matrix product does and no distance matrix is built.
        """
        return cls(embedding, -embedding.float().square().sum(dim=-1) / 2, forbidden)

    def __call__(self, x: Tensor) -> Tensor:
        """Tokens (...) int64 of latents x (..., D)."""
        flat = x.reshape(-1, x.size(-1)).float()
        at_once = max(TOKENS_AT_ONCE, SCORES_AT_ONCE // max(1, len(flat)))
        best, tokens = None, None
        for first in range(0, len(self.bias), at_once):
            chunk = slice(first, first + at_once)
            scores, found = torch.addmm(self.bias[chunk], flat, self.embedding[chunk].t()).max(dim=-1)
            if best is None:
                best, tokens = scores, found
            else:
                better = scores > best
                best, tokens = torch.where(better, scores, best), torch.where(better, found + first, tokens)
        return tokens.view(x.shape[:-1])


def nearest_tokens(x: Tensor, embedding: Tensor, forbidden: Optional[Tensor] = None) -> Tensor:
    """The token (...) whose embedding (V, D) has the least exact L2 distance to each vector x (..., D)."""
    return TokenSearch.nearest(embedding, forbidden)(x)


def clamp_to_tokens(x: Tensor, embedding: Tensor, forbidden: Optional[Tensor] = None) -> Tensor:
    """Replace each vector by its nearest embedding (Li et al., 2022, the clamping trick), in the dtype of x."""
    return embedding[nearest_tokens(x, embedding, forbidden)].to(x.dtype)


def embedding_health(embedding: Tensor, sample: int = 1024) -> Dict[str, float]:
    """Numbers that fall when embeddings (V, D) collapse.

    norm: mean L2 norm; nearest: mean L2 distance to the nearest other embedding, of at most `sample` evenly chosen
    tokens; rank: exp of the entropy of the normalised singular values of the centred table, from 1 (all on a line) to D
    (Roy & Vetterli, 2007).
    """
    embedding = embedding.detach().float()
    chosen = torch.linspace(0, len(embedding) - 1, min(sample, len(embedding)), device=embedding.device).long()
    apart = torch.cdist(embedding[chosen], embedding)
    apart[torch.arange(len(chosen), device=embedding.device), chosen] = torch.inf
    centred = embedding - embedding.mean(dim=0)
    singular = torch.linalg.eigvalsh(centred.t() @ centred).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=torch.finfo(singular.dtype).tiny)
    rank = torch.exp(-torch.xlogy(share, share).sum())
    found = {"norm": embedding.norm(dim=-1).mean(), "nearest": apart.amin(dim=1).mean(), "rank": rank}
    return {name: float(value) for name, value in found.items()}
