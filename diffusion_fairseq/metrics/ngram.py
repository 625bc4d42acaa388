"""An interpolated Kneser-Ney n-gram model over words, and how much of a text stands in the training text.

Words are what stands between blanks, case kept. A corpus is one row of word codes with START in front of each text:
no n-gram reaches over the end of a text. n-grams are known by their place in a sorted table, an n-gram's key being the
place of its first n - 1 words and its last word, so that any order fits in 64 bits and numpy does the counting.
"""

from collections import defaultdict
from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from diffusion_fairseq.errors import UserError

START, ABSENT = -1, -2  # in the place of a word's code: a text begins; the vocabulary does not have the word
NOWHERE = -1  # in the place of an n-gram's: there is none, or the table does not have it
UNKNOWN = 0  # code of the class of unknown words in a model
# Where a table has no n-gram of count 1 or of count 2 the estimate of the discount is not defined, or 1.
FALLBACK_DISCOUNT = 0.5


class Corpus(NamedTuple):
    """Texts as codes (T,) int64, START in front of each, and the code of each word, 0 to V - 1."""

    codes: np.ndarray
    vocabulary: Dict[str, int]


class Level(NamedTuple):
    """One order of a model: p(w | h) = discounted(h w) + backoff(h) p(w | h without its first word).

    Attributes:
        keys: (G,) int64, the n-grams that were seen, sorted.
        discounted: (G + 1,) max(count - discount, 0) / count of the context; at NOWHERE, the last, 0.
        backoff: (C + 1,) by place of the context; 1 where nothing followed it, and at NOWHERE.
    """

    keys: np.ndarray
    discounted: np.ndarray
    backoff: np.ndarray


class KneserNey(NamedTuple):
    """A model: its words (code 0 is the class of the unknown ones), p(w) (V,), and the orders from 2 on.

    `unknown_types` is how many different words the class is: those that were too rare, at least 1.
    """

    vocabulary: Dict[str, int]
    unigrams: np.ndarray
    levels: Tuple[Level, ...]
    unknown_types: int


def read_corpus(texts: Iterable[str]) -> Corpus:
    """Encode texts with all their words, in order of appearance."""
    vocabulary: Dict[str, int] = defaultdict()
    vocabulary.default_factory = vocabulary.__len__
    codes = np.fromiter(_flow(texts, vocabulary.__getitem__), dtype=np.int64)
    return Corpus(codes, dict(vocabulary))


def kneser_ney(corpus: Corpus, order: int = 3, min_count: int = 2) -> KneserNey:
    """Interpolated Kneser-Ney with one discount an order (Chen and Goodman, 1999, section 2.7; Ney et al., 1994).

    Counts of the highest order are occurrences, those of lower orders are the words that stand in front of the n-gram
    in different places; n-grams at the beginning of a text have none there and keep their occurrences. The beginning
    is given and the end of a text is not predicted: a sample of fixed length ends anywhere. The unigrams are
    interpolated with the uniform distribution over the vocabulary, the unknown class included.

    Args:
        min_count: words of fewer occurrences are unknown, and are learnt as one class.
    Raises:
        UserError: order or min_count below 1, a corpus without words.
    """
    if order < 1 or min_count < 1:
        raise UserError(f"an n-gram model of order {order} and words of at least {min_count}: both must be 1 or more")
    if not (corpus.codes >= 0).any():
        raise UserError("an n-gram model needs training text: there is no word")
    codes, vocabulary = _with_unknown(corpus, min_count)
    size = len(vocabulary) + 1
    tables = [np.arange(size)]
    counts = [np.bincount(codes[codes >= 0], minlength=size)]
    places = np.where(codes == START, size, codes)
    for _ in range(2, order + 1):
        keys = _keys(places, codes, size)
        where = np.flatnonzero(keys != NOWHERE)
        known, first, inverse, occurrences = np.unique(keys[where], True, True, True)
        in_front = np.bincount(places[where[first]], minlength=len(tables[-1]))
        counts[-1] = np.where(in_front > 0, in_front, counts[-1])
        tables.append(known)
        counts.append(occurrences)
        places = np.full(len(codes), NOWHERE)
        places[where] = inverse
    # a context of one word may also be the beginning of a text, whose place is that after the words
    contexts = [size + 1, *map(len, tables[1:])]
    levels = tuple(_level(*args, size) for args in zip(tables[1:], counts[1:], contexts))
    return KneserNey(vocabulary, _unigrams(counts[0]), levels, max(len(corpus.vocabulary) - len(vocabulary), 1))


def log_probabilities(model: KneserNey, texts: Sequence[str]) -> List[np.ndarray]:
    """For each text ln p of each word, (words,), given the words before it.

    The class of the unknown words shares its probability evenly among its types (adjusted perplexity: Ueberla, 1994):
    with all of it for each, made-up words would be the likeliest text.
    """
    lookup = model.vocabulary.get
    codes = np.fromiter(_flow(texts, lambda word: lookup(word, UNKNOWN)), dtype=np.int64)
    found = model.unigrams[np.maximum(codes, 0)]
    size = len(model.unigrams)
    contexts = np.where(codes == START, size, codes)
    for level in model.levels:
        places = _places(_keys(contexts, codes, size), level.keys)
        before = np.concatenate(([NOWHERE], contexts[:-1]))
        found = level.discounted[places] + level.backoff[before] * found
        contexts = places
    found[codes == UNKNOWN] /= model.unknown_types
    starts = np.flatnonzero(codes == START)
    return [row[1:] for row in np.split(np.log(found), starts[1:])] if len(starts) else []


def perplexity(log_probs: Sequence[np.ndarray]) -> Optional[float]:
    """exp of the mean -ln p over all words of all texts; None where there is no word."""
    words = sum(map(len, log_probs))
    return float(np.exp(-sum(row.sum() for row in log_probs) / words)) if words else None


def unknown_share(model: KneserNey, texts: Sequence[str]) -> Optional[float]:
    """Share (0 to 1) of the words of all texts that the model does not know; None where there is no word."""
    unknown = [word not in model.vocabulary for text in texts for word in text.split()]
    return sum(unknown) / len(unknown) if unknown else None


def seen_share(texts: Sequence[str], corpus: Corpus, n: int = 8) -> Optional[float]:
    """Share (0 to 1) of the texts' n-grams, each as often as it comes, that stand in a text of the corpus.

    None where no text has n words.
    """
    ours = read_corpus(texts)
    code_of = np.array([ours.vocabulary.get(word, ABSENT) for word in corpus.vocabulary] + [START])
    theirs = code_of[corpus.codes]  # START, -1, takes the last
    size = known = len(ours.vocabulary)
    places, seen_places = ours.codes, np.where(theirs == ABSENT, NOWHERE, theirs)
    for _ in range(2, n + 1):
        keys = _keys(places, ours.codes, size)
        table = np.unique(keys[keys != NOWHERE])
        places, seen_places = (_places(found, table) for found in (keys, _keys(seen_places, theirs, size)))
        known = len(table)
    seen = np.zeros(known, dtype=bool)
    seen[seen_places[seen_places != NOWHERE]] = True
    places = places[places != NOWHERE]
    return float(seen[places].mean()) if len(places) else None


def _flow(texts: Iterable[str], code_of) -> Iterator[int]:
    for text in texts:
        yield START
        yield from map(code_of, text.split())


def _with_unknown(corpus: Corpus, min_count: int) -> Tuple[np.ndarray, Dict[str, int]]:
    """The codes and vocabulary of a model: code 0 for all rare words, which the vocabulary leaves out."""
    kept = np.bincount(corpus.codes[corpus.codes >= 0], minlength=len(corpus.vocabulary)) >= min_count
    code_of = np.append(np.where(kept, np.cumsum(kept), UNKNOWN), START)
    names = list(corpus.vocabulary)
    return code_of[corpus.codes], {names[i]: int(code_of[i]) for i in np.flatnonzero(kept)}


def _keys(contexts: np.ndarray, codes: np.ndarray, size: int) -> np.ndarray:
    """(T,) the key of the n-gram that ends at each word, NOWHERE where there is none.

    Args:
        contexts: (T,) place of the (n-1)-gram that ends at each word.
        codes: (T,) the words, below `size`; negative where no n-gram ends.
    """
    keys = np.full(len(codes), NOWHERE)
    valid = np.flatnonzero((contexts[:-1] != NOWHERE) & (codes[1:] >= 0))
    keys[valid + 1] = contexts[valid] * size + codes[valid + 1]
    return keys


def _places(keys: np.ndarray, table: np.ndarray) -> np.ndarray:
    """(T,) where each key stands in the sorted table; NOWHERE for what it does not have."""
    places = np.full(len(keys), NOWHERE)
    asked = np.flatnonzero(keys != NOWHERE) if len(table) else np.array([], dtype=np.int64)
    found = np.minimum(np.searchsorted(table, keys[asked]), len(table) - 1)
    places[asked] = np.where(table[found] == keys[asked], found, NOWHERE)
    return places


def _level(keys: np.ndarray, counts: np.ndarray, contexts: int, size: int) -> Level:
    context = keys // size
    totals = np.bincount(context, weights=counts, minlength=contexts)
    followers = np.bincount(context, minlength=contexts)
    discount = _discount(counts)
    backoff = np.where(totals > 0, discount * followers / np.maximum(totals, 1), 1)
    return Level(keys, np.append(np.maximum(counts - discount, 0) / totals[context], 0), np.append(backoff, 1))


def _unigrams(counts: np.ndarray) -> np.ndarray:
    discount = _discount(counts)
    left = discount * (counts > 0).sum()
    return (np.maximum(counts - discount, 0) + left / len(counts)) / counts.sum()


def _discount(counts: np.ndarray) -> float:
    """n1 / (n1 + 2 n2), with n1 and n2 the n-grams of count 1 and 2 (Ney et al., 1994)."""
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    return float(once / (once + 2 * twice)) if once and twice else FALLBACK_DISCOUNT
