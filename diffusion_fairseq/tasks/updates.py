"""What the passes of an update have in common with those of any other number of processes."""

from typing import Tuple

import numpy as np
import torch
from fairseq.tasks import FairseqTask
from torch import distributed as dist

from diffusion_fairseq.diffusion.processes import several_processes


def seed_of_pass(seed: int, update: int, place: int) -> int:
    """The seed of all that is drawn in one pass: other numbers in each update and for each of its batches."""
    return int(np.random.SeedSequence((seed, update, place)).generate_state(1, np.uint64)[0])


class SharedUpdates(FairseqTask):
    """Training in which an update does the same however its batches are shared out, over passes or over processes.

    The host gives every process the same random numbers, and the passes of an update successive ones: here each batch
    has its own, by its place in the update. What is learned from losses is learned once an update, of all processes.
    """

    # The update and how many of its passes were begun by this process.
    _passes: Tuple[int, int] = (-1, 0)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False, **kwargs):
        """As fairseq's, with random numbers of its own; a batch that only fills up is marked `ignored`."""
        begun = self._passes[1] if self._passes[0] == update_num else 0
        self._passes = update_num, begun + 1
        rank, processes = (dist.get_rank(), dist.get_world_size()) if several_processes() else (0, 1)
        torch.manual_seed(seed_of_pass(self.cfg.seed, update_num, begun * processes + rank))
        if ignore_grad:
            sample = {**sample, "ignored": True}
        return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad=ignore_grad, **kwargs)

    def optimizer_step(self, optimizer, model, update_num):
        """As fairseq's, which comes once an update, on all processes, and not where its gradient is bad."""
        model.end_update()
        super().optimizer_step(optimizer, model, update_num)
