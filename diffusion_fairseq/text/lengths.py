"""Lengths of generated text: masks, and the beam over predicted lengths."""

import torch
from torch import Tensor


def lengths_to_mask(lengths: Tensor, max_length: int) -> Tensor:
    """(B,) lengths -> (B, max_length) bool, True where a position counts."""
    return torch.arange(max_length, device=lengths.device)[None] < lengths[:, None]


def length_beam(logits: Tensor, beam: int) -> Tensor:
    """The `beam` likeliest lengths of each example, best first.

    Args:
        logits: (B, max_length + 1), a score for each length; length 0 is never chosen.
    Returns:
        (B, beam) int64; where fewer lengths exist the last one is repeated.
    """
    ranked = logits[:, 1:].topk(min(beam, logits.size(1) - 1), dim=1).indices + 1
    missing = beam - ranked.size(1)
    return torch.cat([ranked, ranked[:, -1:].expand(-1, missing)], dim=1) if missing else ranked
