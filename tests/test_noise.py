import math

import pytest
import torch

from diffusion_fairseq.diffusion.noise import RowDraws, combine, gaussian_noise, mix, sequence_keys

KEYS = torch.tensor([1, -5, 1 << 40])


def test_mix_is_splitmix64():
    """First outputs of SplitMix64 seeded with 1234567 (the reference generator's published test vector)."""
    gamma = 0x9E3779B97F4A7C15
    states = [(1234567 + n * gamma) % (1 << 64) for n in range(1, 4)]
    signed = torch.tensor([s - (1 << 64) if s >= 1 << 63 else s for s in states])
    outputs = [x % (1 << 64) for x in mix(signed).tolist()]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_noise_is_standard_gaussian():
    noise = gaussian_noise(torch.arange(64), 3, 50, 64).double()
    n = noise.numel()
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((noise**3).mean()) < 4 * math.sqrt(15 / n)
    assert abs((noise**4).mean() - 3) < 4 * math.sqrt(96 / n)
    expected = torch.distributions.Normal(0, 1).icdf(torch.tensor([0.001, 0.05, 0.5, 0.95, 0.999]))
    found = noise.flatten().sort().values[(torch.tensor([0.001, 0.05, 0.5, 0.95, 0.999]) * n).long()]
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0)


@pytest.mark.parametrize("one, other", [((0, 1), (1, 1)), ((0, 1), (0, 2)), ((0, 0), (0, 1))])
def test_streams_and_draws_are_uncorrelated(one, other):
    keys = mix(torch.arange(2))
    a, b = (gaussian_noise(keys, counter, 64, 64)[row].flatten() for row, counter in (one, other))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / math.sqrt(len(a))


def test_noise_does_not_depend_on_batch_or_length():
    whole = gaussian_noise(KEYS, 7, 9, 6)
    assert whole[1:2].equal(gaussian_noise(KEYS[1:2], 7, 9, 6))
    assert whole.flip(0).equal(gaussian_noise(KEYS.flip(0), 7, 9, 6))
    assert whole[:, :4].equal(gaussian_noise(KEYS, 7, 4, 6))


def test_odd_width_is_refused():
    with pytest.raises(ValueError, match="even"):
        gaussian_noise(KEYS, 0, 2, 3)


def test_sequence_keys_ignore_padding_on_either_side():
    right = torch.tensor([[4, 5, 6, 2, 1, 1]])
    left = torch.tensor([[1, 4, 5, 6, 2]])
    assert sequence_keys(right, right != 1, 3).equal(sequence_keys(left, left != 1, 3))


def test_sequence_keys_depend_on_tokens_order_and_seed():
    rows = torch.tensor([[4, 5, 6, 2], [5, 4, 6, 2], [4, 5, 7, 2], [4, 5, 2, 1]])
    keys = torch.cat([sequence_keys(rows, rows != 1, seed) for seed in (1, 2, -1)])
    assert len(keys.unique()) == 12


def test_combine_separates_numbers():
    keys = combine(KEYS[:, None], torch.arange(1000))
    assert len(keys.unique()) == 3000


def test_a_row_draws_the_same_numbers_in_any_batch():
    like = torch.empty(50, 9, 8)
    whole, few = RowDraws(torch.arange(50)), RowDraws(torch.tensor([7, 3]))
    drawn = [(draws.normal(x), draws.uniform(x), draws.normal(x)) for draws, x in ((whole, like), (few, like[:2, :5]))]
    for together, alone in zip(*drawn):
        assert together[[7, 3]][:, :5].equal(alone) if together.dim() > 1 else together[[7, 3]].equal(alone)
    first, coins, second = drawn[0]
    assert not first.equal(second) and len(coins.unique()) == 50 and 0.35 < coins.mean() < 0.65
