"""What the passes of an update have in common with those of any other number of processes."""

from typing import Sequence, Tuple

import numpy as np
import torch
from fairseq.optim.amp_optimizer import AMPOptimizer
from fairseq.tasks import FairseqTask
from torch import Tensor
from torch import distributed as dist
from torch.nn import Module

from diffusion_fairseq.diffusion.processes import several_processes
from diffusion_fairseq.models.persistence import MET

Facts = Sequence[Tuple[Tensor, Tensor]]


def seed_of_pass(seed: int, update: int, place: int) -> int:
    """The seed of all that is drawn in one pass: other numbers in each update and for each of its batches."""
    return int(np.random.SeedSequence((seed, update, place)).generate_state(1, np.uint64)[0])


def facts_of(model: Module) -> Facts:
    """The buffers that note what training has met, and what they hold."""
    return tuple((buffer, buffer.clone()) for name, buffer in model.named_buffers() if name.endswith(MET))


def restore(facts: Facts) -> None:
    """Give buffers back what they held."""
    for buffer, known in facts:
        buffer.copy_(known)


def finite_gradient(model: Module) -> bool:
    """Whether no gradient overflowed: a sum keeps what is not finite."""
    sums = [parameter.grad.float().sum() for parameter in model.parameters() if parameter.grad is not None]
    return bool(torch.stack(sums).isfinite().all())


class SharedUpdates(FairseqTask):
    """Training in which an update does the same however its batches are shared out, over passes or over processes.

    The host gives every process the same random numbers, and the passes of an update successive ones: here each batch
    has its own, by its place in the update. What is learned from losses is learned once an update, of all processes.
    """

    # That a batch may be marked `ignored`, in place of the host's own way (compat.batches).
    knows_ignored = True
    # The update and how many of its passes were begun by this process.
    _passes: Tuple[int, int] = (-1, 0)
    # What the model had met before it.
    _facts: Facts = ()

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        """As fairseq's, with random numbers of its own; of a batch that is marked `ignored`, since it only fills up,
        nothing is learned or logged."""
        begun = self._passes[1] if self._passes[0] == update_num else 0
        self._passes = update_num, begun + 1
        rank, processes = (dist.get_rank(), dist.get_world_size()) if several_processes() else (0, 1)
        torch.manual_seed(seed_of_pass(self.cfg.seed, update_num, begun * processes + rank))
        ignored = ignore_grad or sample.get("ignored", False)
        if not begun:
            self._facts = facts_of(model)
        before = facts_of(model) if ignored else ()
        loss, size, log = super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad=ignored,
                                             **kwargs)
        if ignored:
            restore(before)
            size, log = size * 0, {name: torch.zeros_like(value) if torch.is_tensor(value) else 0
                                   for name, value in log.items()}
        return loss, size, log

    def leave_out_update(self, model) -> None:
        """An update that was begun is not made: the next one draws and learns as if it had not been."""
        self._passes = -1, 0
        restore(self._facts)
        model.leave_out_update()

    def optimizer_step(self, optimizer, model, update_num):
        """As fairseq's, which comes once an update, on all processes, and not where its gradient is bad; but under
        --amp there, too, and does nothing then: the host tries the update again."""
        if isinstance(optimizer, AMPOptimizer) and not finite_gradient(model):
            self.leave_out_update(model)
        else:
            model.end_update()
        super().optimizer_step(optimizer, model, update_num)
