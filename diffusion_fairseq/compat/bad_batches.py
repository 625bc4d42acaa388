"""Losses and gradients that are not finite: their sentences are named, and the weights stay as they were."""

import logging
from typing import Any, List, Tuple

import torch
from fairseq.trainer import Trainer
from torch import distributed as dist

from diffusion_fairseq.diffusion.processes import several_processes
from diffusion_fairseq.errors import UserError

logger = logging.getLogger(__name__)
MOST_IN_A_ROW = 20  # updates that are left out one after the other: then it is not a rare sentence
SHOWN = 128  # sentences that are named
Passes = List[Tuple[Any, torch.Tensor]]


class BadUpdateError(UserError):
    """An update whose gradient is not finite."""


def report_bad_batches() -> None:
    """Name the sentences of an update whose loss or gradient is not finite, and stop or leave it out.

    Both hosts: they save a checkpoint, print every gradient, compute the update again with hooks on all modules and end
    in a traceback, which with several processes blames --ddp-backend; the sentences are not named.
    """
    clip, step = Trainer.clip_grad_norm, Trainer.train_step

    def clip_grad_norm(self, clip_norm):
        try:
            norm = clip(self, clip_norm)
        except FloatingPointError as error:
            # What --fp16 says at its smallest loss scale.
            raise BadUpdateError(str(error)) from error
        # The norm is of all processes, and the host reads it next.
        if not self.cfg.common.amp and not torch.isfinite(norm).all():
            raise BadUpdateError("not finite")
        return norm

    def train_step(self, samples, raise_oom=False):
        passes: Passes = []

        def note(_, given, found):
            if not given[1].get("ignored"):
                passes.append((given[1].get("id"), found[0].detach()))

        def leave_out():
            if hasattr(self.task, "leave_out_update"):
                self.task.leave_out_update(self.get_model())

        watch, updates = self.criterion.register_forward_hook(note), self.get_num_updates()
        try:
            found = step(self, samples, raise_oom)
            if self.get_num_updates() == updates:  # an overflow of --fp16, or too little memory
                leave_out()
            self.bad_updates = 0
            return found
        except BadUpdateError as error:
            leave_out()
            self.bad_updates = getattr(self, "bad_updates", 0) + 1
            what = describe(passes, self.get_num_updates() + 1)
            skips = getattr(self.get_criterion(), "skips_bad_batches", False)
            if not skips or self.bad_updates > MOST_IN_A_ROW:
                remedy = (f"{MOST_IN_A_ROW} updates before it were left out, too: lower --lr" if skips else
                          "look at those sentences, lower --lr, or leave such updates out with --skip-bad-batches")
                raise UserError(f"{what}. The weights are as before it: {remedy}") from error
            self.zero_grad()
            # Of the factors of the update that is left out the host forgets those of --fp16 alone.
            if getattr(self.optimizer, "scaler", True) is None:
                self.optimizer._multiply_factor = 1.0
            logger.warning(f"{what}: left out (--skip-bad-batches)")
            return None
        finally:
            watch.remove()

    Trainer.clip_grad_norm, Trainer.train_step = clip_grad_norm, train_step


def describe(passes: Passes, update: int) -> str:
    """Which sentences, of all processes, an update met whose gradient is not finite: those of batches whose loss is not
    finite either, if there are such."""
    own = [(ids, bool(torch.isfinite(loss))) for ids, loss in passes if ids is not None]
    batches = [(ids.tolist(), finite) for ids, finite in own]
    if several_processes():
        everyone: List[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, batches)
        batches = [batch for part in everyone for batch in part]
    bad = [ids for ids, finite in batches if not finite]
    numbers = sorted({number for ids in bad or (ids for ids, _ in batches) for number in ids})
    named = ", ".join(map(str, numbers[:SHOWN])) + (", ..." if len(numbers) > SHOWN else "")
    return (f"update {update}: the {'loss' if bad else 'gradient'} is not finite, in the batch of the sentences "
            f"(counted from 0) {named}")
