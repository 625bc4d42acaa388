"""Laws of which positions are noised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_fairseq.text.masking import MASKING, GivenPositions


@pytest.mark.parametrize("name", MASKING)
@given(length=st.integers(1, 70), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_at_least_one_position_is_noised_and_the_seed_decides(name, length, seed):
    one, other = (MASKING[name](length, np.random.default_rng(seed)) for _ in range(2))
    assert one.shape == (length,) and one.dtype == bool and one.any()
    assert (one == other).all()


def shares(name, length=24, draws=4000):
    random = np.random.default_rng(1)
    return np.stack([MASKING[name](length, random) for _ in range(draws)])


def test_full_noises_all():
    assert shares("full").all()


def test_prefix_noises_all_from_a_uniform_start_on():
    drawn = shares("prefix")
    assert (drawn[:, 1:] >= drawn[:, :-1]).all() and drawn[:, -1].all()
    starts = np.bincount(drawn.argmax(axis=1), minlength=24)
    assert starts.min() > 100 and starts.max() < 240  # 4000 / 24 = 167 each, standard deviation 13


def test_random_noises_half_on_average_at_any_rate():
    rates = shares("random").mean(axis=1)
    assert abs(rates.mean() - 0.5) < 0.03 and (rates < 0.2).mean() > 0.1 and (rates > 0.8).mean() > 0.1


def test_mixed_leaves_a_prefix_and_some_of_the_rest():
    drawn = shares("mixed")
    assert drawn[:, 0].mean() < 0.1 < drawn[:, -1].mean() < 0.9


def test_span_noises_half_in_at_most_nine_pieces():
    drawn = shares("span")
    # Half, and with k spans a k-th more in the 2^-k of the cases in which none would be.
    assert abs(drawn.mean() - 0.5 - sum(2.0**-k / k for k in range(1, 10)) / 9) < 0.02
    changes = (drawn[:, 1:] != drawn[:, :-1]).sum(axis=1)
    assert changes.max() <= 8 and (changes >= 5).any()


@pytest.mark.parametrize("text, kept", [("none", []), ("0:2", [0, 1]), ("0:1,-2:", [0, 4, 5]), (":", range(6))])
def test_given_positions(text, kept):
    noised = GivenPositions(text)(6, np.random.default_rng(0))
    assert np.flatnonzero(~noised).tolist() == list(kept)


@pytest.mark.parametrize("text", ["", "3", "0:2:1", "a:b", "0:2;4:5"])
def test_what_are_no_positions_is_refused(text):
    with pytest.raises(ValueError, match="are no positions"):
        GivenPositions(text)
