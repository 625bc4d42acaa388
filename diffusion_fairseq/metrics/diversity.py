"""How varied texts are, among the candidates of one source and over a corpus; no reference is read.

Words are what stands between blanks, case kept. Shares are from 0 to 1.
"""

from collections import Counter
from typing import Iterable, Iterator, List, Sequence, Tuple

import numpy as np

from diffusion_fairseq.errors import UserError

# What decoders leave of padding where they do not strip it.
PADDING_MARKS = frozenset(("<pad>", "[PAD]"))
BLEU_ORDERS = 4


def self_bleu(matrices: Iterable[np.ndarray]) -> float:
    """Mean over sentences of the mean BLEU of each candidate against each other one, 0 (varied) to 100 (all equal).

    Args:
        matrices: for each sentence the (N, N) sentence BLEU of its N >= 2 candidates, as
            `text.reranking.pairwise(candidates, "bleu")` gives it; the diagonal is left out.
    Raises:
        UserError: no sentence, or a sentence with one candidate.
    """
    means = []
    for matrix in matrices:
        if len(matrix) < 2:
            raise UserError("self-BLEU compares the candidates of a sentence: it needs two or more")
        means.append((matrix.sum() - np.trace(matrix)) / (matrix.size - len(matrix)))
    return _mean(means, "self-BLEU: no sentence")


def self_bleu_of_corpus(texts: Sequence[str]) -> float:
    """Mean BLEU-4 of each text with all the others as its references, 0 to 100 (Zhu et al., 2018, section 3.3).

    It grows with the number of texts: compare corpora of as many. Smoothing and the closest length are sacrebleu's for
    sentences: "exp", orders longer than the text left out.

    Raises:
        UserError: fewer than two texts.
    """
    if len(texts) < 2:
        raise UserError("self-BLEU compares texts with one another: it needs two or more")
    words = [text.split() for text in texts]
    lengths = np.array([len(line) for line in words])
    halving, any_match, log_precisions = np.zeros(len(texts)), np.zeros(len(texts), dtype=bool), np.zeros(len(texts))
    for n in range(1, BLEU_ORDERS + 1):
        totals = np.maximum(lengths - n + 1, 0)
        matches = np.array(_matches_with_others([Counter(_ngrams(line, n)) for line in words]))
        halving += (matches == 0) & (totals > 0)
        any_match |= matches > 0
        smoothed = np.where(matches > 0, matches, 0.5**halving)
        log_precisions += np.where(totals > 0, np.log(smoothed / np.maximum(totals, 1)), 0)
    brevity = np.minimum(0, 1 - _closest_others(lengths) / np.maximum(lengths, 1))
    scores = 100 * np.exp(brevity + log_precisions / np.clip(lengths, 1, BLEU_ORDERS))
    return float(np.where(any_match, scores, 0).mean())


def distinct(texts: Sequence[str], n: int) -> float:
    """dist-n of a corpus: different n-grams over all n-grams (Li et al., 2016, section 4.3); 0 where there is none."""
    counts = ngram_counts(texts, n)
    return len(counts) / max(sum(counts.values()), 1)


def distinct_per_sentence(texts: Sequence[str], n: int = 1) -> float:
    """Mean of each text's own different n-grams over all its n-grams (Gong et al., 2023, "dist-1" of DiffuSeq).

    Texts of fewer than n words are left out; 0 where that is all of them.
    """
    shares = [share for share in (distinct([text], n) for text in texts) if share]
    return sum(shares) / max(len(shares), 1)


def distinct_among(candidates: Iterable[Sequence[str]], n: int = 4) -> float:
    """div-n: mean over sentences of different n-grams over all n-grams of its candidates (Gong et al., 2023, div-4).

    Sentences whose candidates have no n-gram are left out; 0 where that is all of them.
    """
    shares = [share for share in (distinct(texts, n) for texts in candidates) if share]
    return sum(shares) / max(len(shares), 1)


def token_entropy(texts: Sequence[str], n: int = 1) -> float:
    """Shannon entropy, in bits, of the n-grams' distribution over the corpus (Zhang et al., 2018, Ent-n)."""
    frequencies = np.array(list(ngram_counts(texts, n).values()), dtype=float)
    shares = frequencies / max(frequencies.sum(), 1)
    return float(-(shares * np.log2(shares)).sum()) if len(shares) else 0.0


def zipf_coefficient(texts: Sequence[str]) -> float:
    """Exponent s of frequency ~ rank^-s over the words, by least squares on logarithms (Holtzman et al., 2020).

    Human text is near 1; 0 where there are fewer than two different words.
    """
    frequencies = np.sort(np.array(list(ngram_counts(texts, 1).values()), dtype=float))[::-1]
    if len(frequencies) < 2:
        return 0.0
    x, y = np.log(np.arange(1, len(frequencies) + 1)), np.log(frequencies)
    x = x - x.mean()
    return float(-(x @ (y - y.mean())) / (x @ x))


def mean_words(texts: Sequence[str]) -> float:
    """Mean length in words. UserError: no text."""
    return _mean([len(text.split()) for text in texts], "lengths: no text")


def duplicate_share(texts: Sequence[str]) -> float:
    """Share of texts with exactly the words of an earlier one, spacing aside and empty ones not counted.

    Raises:
        UserError: no text.
    """
    seen = set()
    repeated = []
    for words in (tuple(text.split()) for text in texts):
        repeated.append(words in seen)
        seen |= {words} - {()}
    return _mean(repeated, "duplicates: no text")


def empty_share(texts: Sequence[str]) -> float:
    """Share of texts without a word, marks of padding (PADDING_MARKS) not counted. UserError: no text."""
    return _mean([not set(text.split()) - PADDING_MARKS for text in texts], "empty outputs: no text")


def ngram_counts(texts: Iterable[str], n: int) -> Counter:
    """How often each n-gram, a tuple of n words, occurs in all texts together."""
    return Counter(ngram for text in texts for ngram in _ngrams(text.split(), n))


def _matches_with_others(counts: Sequence[Counter]) -> List[int]:
    """For each text how many of its n-grams others have, clipped by the largest count in any one of them.

    The two largest counts of each n-gram are enough: where a text has the largest, the others have the second.
    """
    largest: Counter = Counter()
    second: Counter = Counter()
    for own in counts:
        for ngram, count in own.items():
            if count > largest[ngram]:
                second[ngram], largest[ngram] = largest[ngram], count
            elif count > second[ngram]:
                second[ngram] = count
    return [sum(second[ngram] if count == largest[ngram] else count for ngram, count in own.items()) for own in counts]


def _closest_others(lengths: np.ndarray) -> np.ndarray:
    """(N,) the length nearest to each text's among the other texts, of two the shorter."""
    places = np.argsort(lengths, kind="stable")
    ordered = lengths[places].astype(float)
    below, above = np.append(-np.inf, ordered[:-1]), np.append(ordered[1:], np.inf)
    closest = np.empty(len(lengths))
    closest[places] = np.where(ordered - below <= above - ordered, below, above)
    return closest


def _ngrams(words: List[str], n: int) -> Iterator[Tuple[str, ...]]:
    return zip(*(words[first:] for first in range(n)))


def _mean(values: Sequence[float], complaint: str) -> float:
    if not values:
        raise UserError(complaint)
    return float(sum(values) / len(values))
