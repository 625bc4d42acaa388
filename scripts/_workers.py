"""Steps of work in parallel processes, each done whole or not at all, so that a rerun continues. Linux."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

from _commands import end_with_parent
from _data import DataError, progress
from tqdm import tqdm

RESULT = "result.json"
AHEAD = 4   # tasks that wait for each process


class Task(NamedTuple):
    """function(folder, *arguments) fills an empty folder and returns its counts; `size` in bytes is for the bar."""

    folder: Path
    size: int
    function: Callable[..., dict]
    arguments: tuple


def perform(task: Task) -> dict:
    """Do a task in a temporary folder, and give that its name once all is on the disk."""
    temporary = task.folder.with_name(f".{task.folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    result = task.function(temporary, *task.arguments)
    (temporary / RESULT).write_text(json.dumps(result), encoding="ascii")
    for path in [*temporary.iterdir(), temporary]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    os.rename(temporary, task.folder)
    return result


def begin_worker(parent: int) -> None:
    """End with the parent, however that ends, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent(parent, signal.SIGKILL)


class Workers:
    """A context manager around processes that are forked at once: what is imported by then is shared."""

    def __init__(self, count: int):
        self.count = count
        others = multiprocessing.active_children()
        self.pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), begin_worker, (os.getpid(),))
        self.pool.submit(os.getpid).result()
        self.processes = [process for process in multiprocessing.active_children() if process not in others]

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind:
            for process in self.processes:
                process.kill()
        self.pool.shutdown(cancel_futures=True)

    def stream(self, name: str, function: Callable, items: Iterable) -> Iterator:
        """function of each item, in their order; items are read no further ahead than there is work.

        Raises:
            DataError: a process died.
        """
        waiting, coming = deque(), iter(items)
        try:
            while True:
                wanted = AHEAD * self.count - len(waiting)
                waiting.extend(self.pool.submit(function, item) for item in islice(coming, wanted))
                if not waiting:
                    return
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise self._died(name) from None

    @staticmethod
    def _died(name: str) -> DataError:
        return DataError(f"a process died while it was to {name}, for want of memory perhaps; run the same command "
                         "again, with fewer --workers")

    def map(self, name: str, tasks: Sequence[Task]) -> Iterator[dict]:
        """The results of tasks in their order, with a progress bar; those that an earlier run has done are read.

        Raises:
            DataError: a process died.
            What a task raises, once all tasks before it are done.
        """
        done = {task.folder for task in tasks if (task.folder / RESULT).exists()}
        began, worked = time.monotonic(), 0
        bar = tqdm(total=sum(task.size for task in tasks) / 1e6, desc=f"{name:<13}", disable=None, leave=False,
                   initial=sum(task.size for task in tasks if task.folder in done) / 1e6,
                   bar_format="{desc} {percentage:3.0f}% |{bar}| {n:,.1f}/{total:,.1f} MB, {remaining} left")
        waiting, coming = deque(), iter(tasks)
        try:
            with bar:
                while True:
                    while len(waiting) < AHEAD * self.count and (task := next(coming, None)):
                        waiting.append((task, None if task.folder in done else self.pool.submit(perform, task)))
                    if not waiting:
                        break
                    task, future = waiting.popleft()
                    if future:
                        result = future.result()
                        worked += task.size
                        bar.update(task.size / 1e6)
                    else:
                        result = json.loads((task.folder / RESULT).read_text(encoding="ascii"))
                    yield result
        except BrokenProcessPool:
            raise self._died(name) from None
        if worked:
            seconds = time.monotonic() - began
            progress(f"{name}: {worked / 1e6:,.1f} MB in {seconds:,.1f} s, {worked / 1e6 / seconds:,.1f} MB/s")
