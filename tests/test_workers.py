"""scripts/_workers.py: work in other processes, in order, with no more read than is soon needed."""

import multiprocessing
import os
import signal
import sys
import time

import pytest
from helpers import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "scripts"))
from _data import DataError  # noqa: E402, I001
from _workers import AHEAD, Workers  # noqa: E402


def squared(number):
    if number < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01 * (number % 3))
    return number**2


def test_results_come_in_order_and_items_are_read_shortly_before():
    read = []

    def items():
        for number in range(100):
            read.append(number)
            yield number

    with Workers(2) as workers:
        for place, found in enumerate(workers.stream("square", squared, items())):
            assert found == place**2 and len(read) <= place + 2 * AHEAD
    assert len(read) == 100


def test_a_process_that_dies_ends_the_work_in_one_line():
    message = "a process died while it was to square.*fewer --workers"
    with pytest.raises(DataError, match=message), Workers(2) as workers:
        list(workers.stream("square", squared, [1, 2, -1, 3, 4, 5, 6, 7, 8, 9, 10]))


def test_processes_of_others_outlive_an_error():
    """torch's loader raises in whatever runs when one of its processes is killed."""
    other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    other.start()
    try:
        with pytest.raises(KeyError), Workers(2) as workers:
            assert len(workers.processes) == 2
            raise KeyError
        assert other.is_alive() and not any(process.is_alive() for process in workers.processes)
    finally:
        other.kill()
        other.join()
