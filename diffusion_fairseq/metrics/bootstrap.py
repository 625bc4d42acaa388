"""Confidence intervals of corpus measures by resampling sentences (Efron, 1979; Koehn, 2004).

A measure is here a function of sums over sentences, of their scores for ROUGE, of their n-gram counts for BLEU: a
resample is a weighted sum and no text is scored again. Systems that are resampled with the same draws are compared in
pairs: `interval(ours - theirs)` is that of the difference of their scores.
"""

from typing import Callable, Tuple

import numpy as np
from numpy.typing import ArrayLike

from diffusion_fairseq.errors import UserError

DRAWS_AT_ONCE = 64  # resamples whose weights are held as floats at one time


def draws(sentences: int, resamples: int = 1000, seed: int = 1) -> np.ndarray:
    """(resamples, sentences) uint16: how many times each sentence is drawn, `sentences` draws with replacement a row.

    Raises:
        UserError: fewer than one sentence or resample.
    """
    if sentences < 1 or resamples < 1:
        raise UserError(f"a bootstrap of {sentences} sentences and {resamples} resamples: at least one of each")
    generator = np.random.default_rng(seed)
    rows = np.empty((resamples, sentences), dtype=np.uint16)
    for row in rows:
        row[:] = np.bincount(generator.integers(sentences, size=sentences), minlength=sentences)
    return rows


def resampled(statistics: np.ndarray, score: Callable[[np.ndarray], ArrayLike], drawn: np.ndarray) -> np.ndarray:
    """The score of each resample: (R,), or (R, M) where `score` gives M scores.

    Args:
        statistics: (S, K) numbers of each sentence.
        score: of the K sums over the S sentences of a resample.
        drawn: (R, S) of `draws`; the same for all systems that are to be compared.
    """
    scores = []
    for first in range(0, len(drawn), DRAWS_AT_ONCE):
        sums = drawn[first : first + DRAWS_AT_ONCE].astype(float) @ statistics
        scores += [score(row) for row in sums]
    return np.array(scores)


def interval(scores: np.ndarray, confidence: float = 95) -> Tuple[float, float]:
    """The percentile interval of resampled scores that holds `confidence` % of them.

    Raises:
        UserError: confidence is not between 0 and 100.
    """
    if not 0 < confidence < 100:
        raise UserError(f"confidence {confidence:g}: a percentage between 0 and 100, such as 95")
    outside = (100 - confidence) / 2
    low, high = np.percentile(scores, [outside, 100 - outside])
    return float(low), float(high)
