"""Rows of unequal length without their padding: what acts on each position alone computes real positions only."""

from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The count of packed positions is padded to a multiple of this, so that a position's matrix products have the same
# bits however many there are (whole vector registers sum alike).
ALIGNMENT = 16


def filled_up(x: Tensor, dim: int, fill: float = 0.0) -> Tensor:
    """x with a dimension filled up to a multiple of ALIGNMENT: an entry of a product or of a softmax then has the same
    bits whatever the batch."""
    missing = -x.size(dim) % ALIGNMENT
    return F.pad(x, (0, 0) * (x.dim() - 1 - dim) + (0, missing), value=fill) if missing else x


class Packing(NamedTuple):
    """Where the real positions of padded rows lie.

    shape (R, L); mask (R, L) bool, True at real positions, or None where all are; index (n,) the places of the packed
    positions in the flattened rows, or None where those need no change; count: how many of the n are not alignment;
    origin (R * L,) which packed position lies at each place, any of them at padding, or None as index is.
    """

    shape: Tuple[int, int]
    mask: Optional[Tensor] = None
    index: Optional[Tensor] = None
    count: int = 0
    origin: Optional[Tensor] = None

    @classmethod
    def of(cls, mask: Tensor) -> "Packing":
        """Leave the padding of a mask (R, L) out; waits for the device once."""
        flat = mask.flatten()
        index = flat.nonzero().squeeze(1)
        count = len(index)
        full = count == mask.numel()
        if full and count % ALIGNMENT == 0:
            return cls(tuple(mask.shape))
        # At least one position, so that rows of nothing but padding still have a shape.
        index = torch.cat([index, index.new_zeros(-count % ALIGNMENT or (0 if count else ALIGNMENT))])
        return cls(tuple(mask.shape), None if full else mask, index, count, (flat.cumsum(0) - 1).clamp(min=0))

    @classmethod
    def padded(cls, mask: Tensor) -> "Packing":
        """Compute the padding of a mask (R, L) too, and only hide it from attention."""
        return cls(tuple(mask.shape), mask)

    def select(self, rows: Tensor) -> "Packing":
        """The packing of some rows, by index (n,)."""
        if self.mask is None:
            return Packing((len(rows), self.shape[1]))
        return Packing.of(self.mask[rows])

    def pack(self, x: Tensor) -> Tensor:
        """(R, L, ...) -> (n, ...)."""
        flat = x.flatten(0, 1)
        return flat if self.index is None else flat.index_select(0, self.index)

    def unpack(self, x: Tensor) -> Tensor:
        """(n, ...) -> (R, L, ...), zeros at padding."""
        if self.index is not None:
            rows, width = self.shape
            x = x.new_zeros(rows * width, *x.shape[1:]).index_copy(0, self.index[: self.count], x[: self.count])
        return x.unflatten(0, self.shape)

    def spread(self, x: Tensor) -> Tensor:
        """(n, ...) -> (R, L, ...), anything finite at padding: one copy where no gradient is taken, for what hides
        padding anyway."""
        if self.origin is None or torch.is_grad_enabled():
            return self.unpack(x)
        return x.index_select(0, self.origin).unflatten(0, self.shape)

    def mean(self, x: Tensor) -> Tensor:
        """(n, C) -> (R, C), over the real positions of each row."""
        count = self.shape[1] if self.mask is None else self.mask.sum(dim=1, keepdim=True)
        return self.unpack(x).sum(dim=1) / count

    def rows(self, device: torch.device) -> Tensor:
        """The row (n,) of each packed position."""
        return self.pack(torch.arange(self.shape[0], device=device)[:, None].expand(self.shape))

    def columns(self, device: torch.device) -> Tensor:
        """The place (n,) of each packed position in its row."""
        return self.pack(torch.arange(self.shape[1], device=device).expand(self.shape))
