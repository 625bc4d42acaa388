"""What several processes know together."""

import importlib
import multiprocessing
from datetime import timedelta

import pytest
import torch
from torch import distributed

from diffusion_fairseq.compat.processes import restart_under_torchrun
from diffusion_fairseq.diffusion.processes import gather_passes, max_over_processes, sum_over_processes
from diffusion_fairseq.tasks.updates import seed_of_pass

# Two processes' passes; a batch of the second process only fills up.
PASSES = [[[[1, 10], [2, 20]], [[5, 50]]], [[[3, 30]], []]]
TOGETHER = [[1, 10], [2, 20], [3, 30], [5, 50]]


def rows(numbers):
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 2)


def report(folder, rank, results):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2,
                                   timeout=timedelta(seconds=60))
    found = gather_passes([rows(numbers) for numbers in PASSES[rank]])
    numbers = torch.tensor([1.0 + rank, 5.0 - rank])
    results.put((found.tolist(), sum_over_processes(numbers).tolist(), max_over_processes(numbers).tolist()))
    distributed.barrier()


def test_all_processes_know_the_same_in_the_order_of_a_single_one(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    started = [context.Process(target=report, args=(tmp_path, rank, results)) for rank in range(2)]
    for process in started:
        process.start()
    found = [results.get(timeout=60) for _ in started]
    for process in started:
        process.join(60)
    assert found == [(TOGETHER, [3, 9], [2, 5])] * 2


def test_one_process_knows_what_it_has_met():
    assert gather_passes([rows(TOGETHER[:3]), rows(TOGETHER[3:])]).tolist() == TOGETHER
    assert sum_over_processes(rows(TOGETHER)).tolist() == max_over_processes(rows(TOGETHER)).tolist() == TOGETHER


def test_processes_that_were_started_again_do_not_find_the_dead_ones(monkeypatch):
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    store = distributed.HashStore()
    store.set("address of rank 0", "dead")
    monkeypatch.setattr(rendezvous, "_create_c10d_store", lambda *_: store)
    for restarts in "01":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
        restart_under_torchrun()
        assert rendezvous._create_c10d_store("host", 1).check(["address of rank 0"]) == (restarts == "0")


def test_each_batch_of_each_update_draws_other_numbers():
    seeds = [seed_of_pass(seed, update, place) for seed in range(3) for update in range(50) for place in range(8)]
    assert len(set(seeds)) == len(seeds)
    assert all(torch.manual_seed(seed) for seed in seeds)
    with pytest.raises(ValueError):
        seed_of_pass(-1, 0, 0)
