"""Choosing among the candidates of one source: minimum Bayes risk without a reference, and the oracle's choice.

A utility gives the (N, N) matrix of N candidates: entry [i, j] scores candidate i with candidate j in the reference's
place. Python's work grows with the number of words in the candidates, not with the number of pairs: n-grams are counted
once a candidate and compared by one matrix product, and each candidate's longest common subsequences with all the
others come from one pass of bit operations.
"""

import math
import re
from collections import Counter
from typing import Callable, Dict, Hashable, Iterable, List, Sequence

import numpy as np

from diffusion_fairseq.errors import UserError

BLEU_ORDERS = 4
# What an oracle may choose by; GENIE's evaluation takes its own ROUGE-2 (glge2), and ROUGE-1 where that is equal.
ORACLES: Dict[str, tuple] = {"rougeL": ("rougeL",), "rouge1": ("rouge1",), "rouge2": ("rouge2", "rouge1"),
                             "glge2": ("glge2", "glge1")}
# On ASCII text what rouge-score takes for a word; other scripts keep theirs, which rouge-score drops.
_ROUGE_WORD = re.compile(r"[^\W_]+")
Words = Sequence[Hashable]


def mbr(candidates: Sequence[str], utility: str = "rougeL") -> int:
    """Index of the candidate with the largest mean utility against the others (Kumar and Byrne, 2004); ties: the first.

    No reference is read. Each of the N candidates counts as one sample of the model, so that one which comes twice
    weighs twice; a single candidate is chosen as it is.

    Raises:
        UserError: no candidate, or a utility that UTILITIES does not hold.
    """
    return most_useful(pairwise(candidates, utility))


def pairwise(candidates: Sequence[str], utility: str = "rougeL") -> np.ndarray:
    """The (N, N) matrix of a utility, 0 to 100, row: hypothesis, column: reference; identical texts share the work."""
    if not candidates:
        raise UserError("no candidates to choose from")
    if utility not in UTILITIES:
        raise UserError(f"unknown utility {utility!r}; known are {', '.join(UTILITIES)}")
    place = {text: number for number, text in enumerate(dict.fromkeys(candidates))}
    rows = [place[text] for text in candidates]
    return UTILITIES[utility](list(place))[np.ix_(rows, rows)]


def most_useful(matrix: np.ndarray) -> int:
    """The row of an (N, N) utility matrix with the largest mean off the diagonal; the first of equal ones."""
    return by_usefulness(matrix)[0]


def by_usefulness(matrix: np.ndarray) -> List[int]:
    """All rows of an (N, N) utility matrix, the largest mean off the diagonal first; equal ones in their order."""
    # fsum is exact whatever the order, so that permuted candidates do not tie or part by rounding
    means = [math.fsum(row) - row[i] for i, row in enumerate(matrix.tolist())]
    return sorted(range(len(means)), key=lambda i: -means[i])


def oracle_best_of(reference_scores: Sequence) -> int:
    """The ORACLE's index: the first candidate with the highest score *against the reference*.

    A bound on what reranking could reach, never the result of a system: no reference is known when text is generated.

    Args:
        reference_scores: a number of each candidate, or a tuple of those that decide one after the other.
    """
    return max(range(len(reference_scores)), key=reference_scores.__getitem__)


def oracle_picks(scores: np.ndarray, measures: Sequence[str], chosen_by: str) -> List[int]:
    """The ORACLE's candidate of each sentence, (S,).

    Args:
        scores: (S, N, M), the measures of each candidate *against the reference*.
        measures: M names.
        chosen_by: of ORACLES; where its measures are equal the first candidate is taken.
    """
    columns = [measures.index(name) for name in ORACLES[chosen_by]]
    return [oracle_best_of(list(map(tuple, sentence))) for sentence in scores[:, :, columns].tolist()]


def sentence_bleu(texts: Sequence[str]) -> np.ndarray:
    """Pairwise sentence BLEU, 0 to 100, over words between blanks, case kept.

    Smoothing is sacrebleu's "exp" with effective order (Chen and Cherry, 2014, method 3): the k-th order without a
    match counts 1 / 2^k matches, and orders longer than the hypothesis are left out.
    """
    words = [text.split() for text in texts]
    lengths = np.array([len(line) for line in words], dtype=float)
    log_precisions, halvings = np.zeros((len(texts), len(texts))), np.zeros((len(texts), len(texts)))
    any_match = np.zeros((len(texts), len(texts)), dtype=bool)
    orders = np.clip(lengths, 1, BLEU_ORDERS)[:, None]
    for n in range(1, BLEU_ORDERS + 1):
        totals = np.maximum(lengths - n + 1, 0)[:, None]
        matches = shared_ngrams(words, n)
        halvings += (matches == 0) & (totals > 0)
        any_match |= matches > 0
        smoothed = np.where(matches > 0, matches, 0.5**halvings)
        log_precisions += np.where(totals > 0, np.log(smoothed / np.maximum(totals, 1)), 0)
    brevity = np.minimum(0, 1 - lengths[None, :] / np.maximum(lengths[:, None], 1))
    return np.where(any_match, 100 * np.exp(brevity + log_precisions / orders), 0)


def rouge_n(texts: Sequence[Words], n: int) -> np.ndarray:
    """Pairwise ROUGE-N F1, 0 to 100 (Lin, 2004)."""
    return f1(shared_ngrams(texts, n), [max(len(text) - n + 1, 0) for text in texts])


def rouge_l(texts: Sequence[Words]) -> np.ndarray:
    """Pairwise ROUGE-L F1, 0 to 100 (Lin, 2004)."""
    return f1(common_subsequences(texts), [len(text) for text in texts])


def rouge_mean(texts: Sequence[Words]) -> np.ndarray:
    """The mean of pairwise ROUGE-1, ROUGE-2 and ROUGE-L: what summaries are judged by."""
    return (rouge_n(texts, 1) + rouge_n(texts, 2) + rouge_l(texts)) / 3


def _of_rouge_words(utility: Callable[[Sequence[Words]], np.ndarray]) -> Callable[[Sequence[str]], np.ndarray]:
    """A utility of texts by their words, lower-cased, without stemming."""
    return lambda texts: utility([rouge_words(text) for text in texts])


UTILITIES: Dict[str, Callable[[Sequence[str]], np.ndarray]] = {
    "bleu": sentence_bleu,
    "rouge1": _of_rouge_words(lambda texts: rouge_n(texts, 1)),
    "rouge2": _of_rouge_words(lambda texts: rouge_n(texts, 2)),
    "rougeL": _of_rouge_words(rouge_l),
    "rouge": _of_rouge_words(rouge_mean),
}


def rouge_words(text: str) -> List[str]:
    """The words that ROUGE counts: runs of letters and digits, in lower case."""
    return _ROUGE_WORD.findall(text.lower())


def f1(shared: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """100 x F1 of `shared` (N, N) units out of `counts` (N) in each text; 0 where a text has none."""
    both = np.add.outer(counts, counts)
    return np.where(both > 0, 200 * shared / np.maximum(both, 1), 0)


def shared_ngrams(texts: Sequence[Words], n: int) -> np.ndarray:
    """Clipped n-gram matches (N, N): for each pair the sum over n-grams of the smaller count.

    The k-th occurrence of an n-gram in a text is a feature of its own: two texts have min(count, count) of them in
    common, and the product of the 0/1 matrix of features with its transpose counts all pairs at once.
    """
    features: Dict[tuple, int] = {}
    held = [[features.setdefault(found, len(features)) for found in occurrences(words, n)] for words in texts]
    matrix = np.zeros((len(texts), max(len(features), 1)), dtype=np.float32)
    for row, columns in zip(matrix, held):
        row[columns] = 1
    return (matrix @ matrix.T).astype(float)


def occurrences(words: Words, n: int) -> Iterable[tuple]:
    """(n-gram, how many times it stood before) from left to right."""
    seen: Counter = Counter()
    for ngram in zip(*(words[first:] for first in range(n))):
        yield ngram, seen[ngram]
        seen[ngram] += 1


def common_subsequences(texts: Sequence[Words]) -> np.ndarray:
    """Lengths (N, N) of the longest common subsequences of all pairs.

    Bit-parallel (Hyyro, 2004): a set bit of `state` is a place of the other text that adds nothing yet. All texts lie
    side by side in one integer, each under a guard bit, cleared at every step, that keeps carries from the next text.
    """
    places: Dict[Hashable, int] = {}
    starts, whole, position = [], 0, 0
    for words in texts:
        starts.append(position)
        for offset, word in enumerate(words):
            places[word] = places.get(word, 0) | 1 << (position + offset)
        whole |= ((1 << len(words)) - 1) << position
        position += len(words) + 1
    lengths = np.zeros((len(texts), len(texts)))
    for i, words in enumerate(texts):
        state = whole
        for word in words:
            matches = state & places[word]
            state = ((state + matches) | (state - matches)) & whole
        found = whole & ~state
        lengths[i] = [(found >> start & ((1 << len(other)) - 1)).bit_count() for start, other in zip(starts, texts)]
    return lengths
