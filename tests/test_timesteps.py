import pytest
import torch

from diffusion_fairseq.diffusion.timesteps import (
    TIMESTEP_SAMPLERS,
    LossSecondMomentTimesteps,
    LowDiscrepancyTimesteps,
    UniformTimesteps,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("sampler", TIMESTEP_SAMPLERS.values())
def test_timesteps_are_in_range_uniform_and_reproducible(sampler):
    sampler = sampler(20)
    t, weight = sampler.draw(20000, CPU, torch.Generator().manual_seed(1))
    assert t.min() == 0 and t.max() == 19 and t.dtype == torch.int64
    assert weight.tolist() == [1.0] * 20000
    assert (torch.bincount(t) - 1000).abs().max() < 5 * 1000**0.5
    again, _ = sampler.draw(20000, CPU, torch.Generator().manual_seed(1))
    assert t.equal(again)


def test_low_discrepancy_fills_every_stratum_of_a_batch():
    t, _ = LowDiscrepancyTimesteps(2000).draw(50, CPU, torch.Generator().manual_seed(3))
    assert sorted((t // 40).tolist()) == list(range(50)) or (t.sort().values.diff() - 40).abs().max() <= 1
    uniform, _ = UniformTimesteps(2000).draw(50, CPU, torch.Generator().manual_seed(3))
    assert len((uniform // 40).unique()) < 50


def test_low_discrepancy_does_not_follow_the_order_of_the_batch():
    t, _ = LowDiscrepancyTimesteps(2000).draw(500, CPU, torch.Generator().manual_seed(3))
    correlation = torch.corrcoef(torch.stack([t.double(), torch.arange(500.0, dtype=torch.float64)]))[0, 1]
    assert abs(correlation) < 0.2


def warmed(losses, history=4):
    sampler = LossSecondMomentTimesteps(len(losses), history=history, uniform_share=0.01)
    for _ in range(history):
        sampler.update(torch.arange(len(losses)), torch.tensor(losses))
    return sampler


def test_second_moment_draws_by_loss_and_weighs_back():
    sampler = warmed([1.0, 3.0, 0.0])
    p = sampler.probabilities()
    torch.testing.assert_close(p, 0.99 * torch.tensor([0.25, 0.75, 0.0]).double() + 0.01 / 3)
    t, weight = sampler.draw(30000, CPU, torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.bincount(t) / 30000, p.float(), atol=0.02, rtol=0)
    # Importance weights leave expectations as under a uniform law.
    value = torch.tensor([5.0, 1.0, 2.0])
    assert abs((weight * value[t]).mean() - value.mean()) < 0.25


def test_second_moment_is_uniform_until_every_timestep_has_a_history():
    sampler = LossSecondMomentTimesteps(3, history=2)
    sampler.update(torch.tensor([0, 0, 1, 1, 2]), torch.tensor([9.0, 9.0, 1.0, 1.0, 1.0]))
    assert sampler.probabilities().tolist() == [1 / 3] * 3
    sampler.update(torch.tensor([2]), torch.tensor([1.0]))
    assert sampler.probabilities()[0] > 0.8


def test_second_moment_keeps_the_last_losses_as_a_queue_would():
    generator = torch.Generator().manual_seed(5)
    sampler = LossSecondMomentTimesteps(4, history=3)
    queues = [[] for _ in range(4)]
    for size in (1, 2, 7, 12, 3, 5):
        t = torch.randint(4, (size,), generator=generator)
        loss = torch.rand(size, generator=generator)
        sampler.update(t, loss)
        for step, value in zip(t.tolist(), loss.tolist()):
            queues[step].append(value)
    for step in range(4):
        assert sampler.counts[step] == len(queues[step])
        assert sorted(sampler.losses[step].tolist()) == pytest.approx(sorted(queues[step][-3:]))
