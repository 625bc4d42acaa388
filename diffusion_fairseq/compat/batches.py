"""Batches: none is lost, buckets work with numpy 2, and prefetching ends with the process."""

import atexit
import queue
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
from fairseq.data import data_utils, iterators, language_pair_dataset, token_block_dataset
from fairseq.trainer import Trainer

from diffusion_fairseq.compat.patching import replace
from diffusion_fairseq.errors import UserError

SECONDS_TO_STOP = 30.0


def keep_last_batch() -> None:
    """Give back the last batch where it is smaller than --required-batch-size-multiple (8 by default).

    Main since December 2022 drops it, from test sets too: up to 7 sentences, the longest ones, and a test set
    of 5 sentences ends in ZeroDivisionError. No module of either host imports the function by name.
    https://github.com/facebookresearch/fairseq/issues/5036 https://github.com/facebookresearch/fairseq/issues/5351
    """
    stock = data_utils.batch_by_size

    def batch_by_size(indices, *args, **kwargs):
        if not isinstance(indices, np.ndarray):
            indices = np.fromiter(indices, dtype=np.int64, count=-1)
        if len(indices) == 0:
            return []
        try:
            batches = stock(indices, *args, **kwargs)
        except AssertionError as error:
            # All that it checks.
            raise UserError(f"{str(error).replace('max_tokens=', '--max-tokens ')}: raise that, or cut sentences "
                            "(--max-source-positions, --max-target-positions)") from error
        kept = sum(len(batch) for batch in batches)
        # Batches are consecutive slices of the indices, but for fixed shapes, which lose none.
        return batches if kept == len(indices) else [*batches, indices[kept:]]

    replace(data_utils, "batch_by_size", batch_by_size)


class _Numpy(ModuleType):
    """numpy with the two names that numpy 2 took away and the host still uses."""

    compat = SimpleNamespace(long=int)

    def __getattr__(self, name: str) -> object:
        return getattr(np, name)

    def percentile(self, values, percentages, interpolation):
        """np.percentile with the option's name from before numpy 1.22."""
        return np.percentile(values, percentages, method=interpolation)


def count_all_but_fillers() -> None:
    """Of an update's passes leave out those that only fill it up, for a task that knows a batch marked `ignored`.

    Both hosts: where the last pass of a process is such a filler, its other passes are left out of the sample size,
    too, but not of the gradient, and of the log.
    """
    prepare = Trainer._prepare_sample

    def _prepare_sample(self, sample, is_dummy=False):
        sample, filler = prepare(self, sample, is_dummy)
        if filler and self.model.training and getattr(self.task, "knows_ignored", False):
            return {**sample, "ignored": True}, False
        return sample, filler

    Trainer._prepare_sample = _prepare_sample


def numpy2_buckets() -> None:
    """Make --num-batch-buckets work.

    Both hosts with numpy >= 2: np.compat is gone since 2.0, np.percentile(interpolation=...) since 2.4.
    """
    if int(np.__version__.partition(".")[0]) < 2:
        return
    for module in (data_utils, language_pair_dataset, token_block_dataset):
        module.np = _Numpy("numpy")


def stop_prefetching() -> None:
    """End each thread that reads batches ahead, and wait for it."""
    deadline = time.monotonic() + SECONDS_TO_STOP
    for thread in threading.enumerate():
        if not isinstance(thread, iterators.BackgroundConsumer):
            continue
        thread._max_len = 0
        while thread.is_alive() and time.monotonic() < deadline:
            try:
                thread._queue.get_nowait()
            except queue.Empty:
                thread.join(0.01)


def stop_prefetch_at_exit() -> None:
    """Stop the prefetch threads before Python shuts down.

    Both hosts, --data-buffer-size > 0 (the default): a thread that is inside torch when the interpreter goes
    away aborts a training that had succeeded ("terminate called without an active exception", status 134).
    """
    atexit.register(stop_prefetching)
