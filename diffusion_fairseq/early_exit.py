"""Which sequences of a batch are still being denoised, and how the others leave it."""

from collections import Counter
from typing import NamedTuple, Optional, Tuple

import torch
from torch import Tensor

# Rows move together when at least this share of them has finished: moving copies the memory of those that stay.
WORTH_MOVING = 0.125


class Live(NamedTuple):
    """The rows of a batch that is being denoised; those that finished stay as filler, which is not computed, until the
    batch is compacted.

    origin (R,) each row's place among all that were begun; active (R,) bool, False for filler; tokens (R, L) after the
    last step; unchanged (R,) for how many steps they have been the same.
    """

    origin: Tensor
    active: Tensor
    tokens: Tensor
    unchanged: Tensor

    @classmethod
    def begin(cls, count: int, width: int, device: torch.device) -> "Live":
        """All rows active; no token yet."""
        origin = torch.arange(count, device=device)
        tokens = torch.full((count, width), -1, device=device)
        return cls(origin, torch.ones_like(origin, dtype=torch.bool), tokens, torch.zeros_like(origin))

    def after(self, tokens: Tensor) -> "Live":
        """The rows with the tokens (R, L) of the next step; where none is generated they are always the same."""
        same = (tokens == self.tokens).all(dim=1)
        return self._replace(tokens=tokens, unchanged=torch.where(same, self.unchanged + 1, 0))

    def select(self, index: Tensor, width: int) -> "Live":
        """Some rows, by index, cut to `width` positions."""
        return Live(self.origin[index], self.active[index], self.tokens[index, :width], self.unchanged[index])


def compaction(active: Tensor, num_sources: int) -> Optional[Tuple[Tensor, Tensor]]:
    """Which sources and rows stay when finished rows leave.

    Every source keeps as many rows as the one with the most active ones, so that the candidates of a source can still
    be folded over its memory.

    Args:
        active: (B * N,) bool, candidates of a source side by side.
        num_sources: B.
    Returns:
        The sources that stay (B',) and the index of the rows that stay (B' * N',); None where it is not worth moving.
    """
    grouped = active.view(num_sources, -1)
    counts = grouped.sum(dim=1)
    sources = counts.nonzero().squeeze(1)
    per_source = int(counts.max())
    if len(sources) * per_source > (1 - WORTH_MOVING) * len(active):
        return None
    first = torch.argsort(grouped[sources].int(), dim=1, descending=True, stable=True)[:, :per_source]
    return sources, (sources[:, None] * grouped.size(1) + first).flatten()


def histogram(steps_used: Counter, num_steps: int) -> str:
    """How many hypotheses took how many of the steps, a line for each tenth of those; empty before any was made."""
    total = sum(steps_used.values())
    if not total:
        return ""
    mean = sum(steps * count for steps, count in steps_used.items()) / total
    lines = [f"steps used: mean {mean:.1f} of {num_steps}, {total} hypotheses"]
    width = -(-num_steps // 10)
    for first in range(1, num_steps + 1, width):
        last = min(first + width - 1, num_steps)
        count = sum(steps_used[steps] for steps in range(first, last + 1))
        lines.append(f"{first:5d}-{last:<5d} {count:7d} {'#' * round(50 * count / total)}")
    return "\n".join(lines)
