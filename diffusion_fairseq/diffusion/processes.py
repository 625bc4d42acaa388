"""What the processes of a data-parallel training know together; one process alone knows it already."""

from typing import List

import torch
from torch import Tensor
from torch import distributed as dist


def several_processes() -> bool:
    """Whether this process is one of several that train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def sum_over_processes(x: Tensor) -> Tensor:
    """The sum of x over the processes."""
    return _reduced(x, "SUM")


def max_over_processes(x: Tensor) -> Tensor:
    """The greatest x of all processes, element by element."""
    return _reduced(x, "MAX")


def _reduced(x: Tensor, how: str) -> Tensor:
    if not several_processes():
        return x
    x = x.clone()
    dist.all_reduce(x, op=getattr(dist.ReduceOp, how))
    return x


def gather_passes(passes: List[Tensor]) -> Tensor:
    """The rows (n, k) float64 of all passes of all processes: first those of every process's first pass.

    That is the order in which a single process meets the same batches: they are dealt out in turn.

    Args:
        passes: what each pass of this process has met, (rows, k) float64; at least one, of no rows perhaps.
    """
    if not several_processes():
        return torch.cat(passes)
    # Numbered, because processes may have met different numbers of rows in each pass.
    rows = torch.cat([torch.cat([torch.full_like(rows[:, :1], number), rows], 1) for number, rows in enumerate(passes)])
    most = int(max_over_processes(torch.tensor(len(rows), device=rows.device)))
    filled = rows.new_full((most, rows.size(1)), -1)
    filled[: len(rows)] = rows
    parts = [torch.empty_like(filled) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, filled)
    everything = torch.cat(parts)
    everything = everything[everything[:, 0] >= 0]
    return everything[everything[:, 0].argsort(stable=True), 1:]
