"""Rounding latents to tokens and clamping them to embeddings."""

from typing import Optional

import torch
from torch import Tensor


def nearest_tokens(x: Tensor, embedding: Tensor, forbidden: Optional[Tensor] = None) -> Tensor:
    """The token whose embedding has the least exact L2 distance to each vector.

    |x - e|^2 = |x|^2 - 2 (x.e - |e|^2 / 2): the nearest embedding has the largest x.e - |e|^2 / 2, so that one
    matrix product does and no distance matrix is built.

    Args:
        x: (..., D).
        embedding: (V, D).
        forbidden: (V,) bool, True for tokens that may not be chosen.
    Returns:
        (...) int64.
    """
    bias = -embedding.float().square().sum(dim=-1) / 2
    if forbidden is not None:
        bias = bias.masked_fill(forbidden, -torch.inf)
    flat = x.reshape(-1, x.size(-1)).float()
    return torch.addmm(bias, flat, embedding.float().t()).argmax(dim=-1).view(x.shape[:-1])


def clamp_to_tokens(x: Tensor, embedding: Tensor, forbidden: Optional[Tensor] = None) -> Tensor:
    """Replace each vector by its nearest embedding (Li et al., 2022, the clamping trick), in the dtype of x."""
    return embedding[nearest_tokens(x, embedding, forbidden)].to(x.dtype)
