"""metrics/bootstrap.py: draws, resampled scores, intervals."""

import time

import numpy as np
import pytest

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import bootstrap, overlap


def mean(sums):
    return sums[0] / sums[1]


def with_ones(values):
    return np.stack([values, np.ones(len(values))], axis=1)


def test_each_resample_draws_as_many_sentences():
    drawn = bootstrap.draws(50, resamples=200, seed=3)
    assert drawn.shape == (200, 50) and (drawn.sum(axis=1) == 50).all()
    assert drawn.mean(axis=0) == pytest.approx(np.ones(50), abs=0.35)
    assert len(np.unique(drawn, axis=0)) == 200


def test_the_seed_decides():
    first, again, other = (bootstrap.draws(20, 10, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_the_spread_of_a_mean_is_the_standard_error():
    values = np.random.default_rng(0).normal(10, 4, size=400)
    scores = bootstrap.resampled(with_ones(values), mean, bootstrap.draws(400, 4000))
    assert scores.mean() == pytest.approx(values.mean(), abs=0.03)
    assert scores.std() == pytest.approx(values.std() / 20, rel=0.05)
    low, high = bootstrap.interval(scores, 95)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * values.std() / 20,
                                         values.mean() + 1.96 * values.std() / 20), abs=0.05)


def test_intervals_hold_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(1)
    held = 0
    for seed in range(200):
        values = generator.normal(size=100)
        scores = bootstrap.resampled(with_ones(values), mean, bootstrap.draws(100, 200, seed))
        low, high = bootstrap.interval(scores, 80)
        held += low <= 0 <= high
    assert 140 <= held <= 178  # binomial(200, 0.8) is within 3.5 standard deviations


def test_resamples_are_whole_corpora_for_bleu():
    """A drawn corpus, written out, has the score that its sentences' counts add up to."""
    hypotheses = ["the cat sat on the mat", "we go now and then", "it rains a lot here"]
    references = ["the cat sat on a mat", "we will go now and then", "much rain falls here"]
    drawn = bootstrap.draws(3, resamples=8)
    for name, whole in (("bleu", overlap.bleu), ("chrf", overlap.chrf)):
        measure = overlap.CorpusMeasure(name)
        scores = bootstrap.resampled(measure.statistics(hypotheses, references), measure.score, drawn)
        for times, score in zip(drawn, scores):
            places = np.repeat(np.arange(3), times)
            written = whole([hypotheses[i] for i in places], [references[i] for i in places])
            assert score == pytest.approx(written.score)


def test_paired_differences_are_narrower_than_their_parts():
    generator = np.random.default_rng(0)
    hard = generator.normal(30, 10, size=300)
    ours, theirs = hard + 1 + generator.normal(size=300), hard
    drawn = bootstrap.draws(300, 500)
    a, b = (bootstrap.resampled(with_ones(values), mean, drawn) for values in (ours, theirs))
    low, high = bootstrap.interval(a - b)
    assert 0.5 < low < 1 < high < 1.5
    assert np.ptp(bootstrap.interval(a)) > 4 * (high - low)


def test_several_scores_at_once():
    values = np.arange(10.0)
    scores = bootstrap.resampled(with_ones(values), lambda sums: [mean(sums), -mean(sums)], bootstrap.draws(10, 100))
    assert scores.shape == (100, 2) and np.array_equal(scores[:, 0], -scores[:, 1])


@pytest.mark.parametrize("confidence", [0, 100, -5, float("nan")])
def test_impossible_confidences_are_refused(confidence):
    with pytest.raises(UserError, match="between 0 and 100"):
        bootstrap.interval(np.zeros(3), confidence)


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(UserError, match="at least one"):
        bootstrap.draws(0)


def test_a_thousand_resamples_are_fast():
    statistics = np.ones((1500, 32))
    began = time.process_time()
    bootstrap.resampled(statistics, lambda sums: sums[0], bootstrap.draws(1500))
    assert time.process_time() - began < 3
