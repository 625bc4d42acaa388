"""How much a text shares with its reference (ROUGE, BLEU, chrF) and with its source.

ROUGE comes from the rouge-score package, BLEU and chrF from sacrebleu; none is computed here.
"""

import re
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from diffusion_fairseq.errors import UserError

BLEU_COUNTS = 10  # of sacrebleu's statistics: two lengths, then matches and totals of four orders
DEFAULT_ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")
_KNOWN_ROUGE_TYPE = re.compile(r"rouge([1-9]|L|Lsum)")


class CorpusScore(NamedTuple):
    """A score from 0 to 100 and sacrebleu's signature: the settings that make it comparable."""

    score: float
    signature: str


def check_rouge(types: Sequence[str]) -> None:
    """Raises UserError when `types` is empty or holds an unknown one, or rouge-score is not installed."""
    unknown = [name for name in types if not _KNOWN_ROUGE_TYPE.fullmatch(name)]
    if unknown or not types:
        what = f"unknown ROUGE type {', '.join(map(repr, unknown))}" if unknown else "no ROUGE type given"
        raise UserError(f"{what}; known are rouge1 to rouge9, rougeL, rougeLsum")
    if find_spec("rouge_score") is None:
        raise UserError("ROUGE needs the rouge-score package: pip install rouge-score")


def rouge_per_sentence(
    hypotheses: Sequence[str],
    references: Sequence[str],
    types: Sequence[str] = DEFAULT_ROUGE_TYPES,
    use_stemmer: bool = True,
) -> dict[str, list[float]]:
    """F1 x 100 of each sentence under each ROUGE type (Lin, 2004), as the rouge-score package defines it.

    rouge-score lower-cases and keeps only the letters a-z and digits: texts in other scripts score 0, and so
    does an empty hypothesis, even against an empty reference. rougeLsum takes newlines for sentence ends;
    on text of one line it is rougeL.

    Raises:
        UserError: an unknown type, lists of unequal length, rouge-score is not installed.
    """
    scores = rouge_scores(hypotheses, references, types, use_stemmer)
    return {name: [100 * score.fmeasure for score in found] for name, found in scores.items()}


def rouge_scores(
    hypotheses: Sequence[str], references: Sequence[str], types: Sequence[str], use_stemmer: bool = True
) -> dict[str, list]:
    """As `rouge_per_sentence`, but rouge-score's own records: precision, recall and fmeasure from 0 to 1."""
    check_rouge(types)
    _check_lengths(hypotheses, references)
    # an optional dependency, and more than a second of import time that training need not pay
    from rouge_score import rouge_scorer, tokenizers

    # given a tokenizer, RougeScorer does not log one line per construction into fairseq-generate's output
    scorer = rouge_scorer.RougeScorer(list(types), tokenizer=tokenizers.DefaultTokenizer(use_stemmer))
    scores = [
        scorer.score(target=ref, prediction=hyp) for hyp, ref in zip(hypotheses, references, strict=True)
    ]
    return {name: [score[name] for score in scores] for name in types}


def rouge(
    hypotheses: Sequence[str],
    references: Sequence[str],
    types: Sequence[str] = DEFAULT_ROUGE_TYPES,
    use_stemmer: bool = True,
) -> dict[str, float]:
    """Mean over sentences of `rouge_per_sentence`; UserError also when there is no sentence."""
    _check_not_empty(hypotheses)
    per_sentence = rouge_per_sentence(hypotheses, references, types, use_stemmer)
    return {name: sum(scores) / len(scores) for name, scores in per_sentence.items()}


def rouge_signature(use_stemmer: bool = True) -> str:
    """The settings of `rouge` in the style of sacrebleu's signatures."""
    return f"f1:mean|stem:{'porter' if use_stemmer else 'no'}|rouge-score:{version('rouge-score')}"


class CorpusMeasure:
    """A measure of sacrebleu, "bleu" or "chrf", taken apart: its numbers add up over any choice of sentences."""

    def __init__(self, name: str):
        from sacrebleu.metrics import BLEU, CHRF

        self._metric = {"bleu": BLEU, "chrf": CHRF}[name]()

    def statistics(self, hypotheses: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """(S, K) counts of each sentence. UserError: unequal lengths, no sentence."""
        _check_not_empty(hypotheses)
        _check_lengths(hypotheses, references)
        # sacrebleu shows these counts in no public place; a test holds them to its corpus score
        return np.array(self._metric._extract_corpus_statistics(list(hypotheses), [list(references)]), dtype=float)

    def score(self, sums: np.ndarray) -> float:
        """The corpus's score, 0 to 100, from the K sums over its sentences."""
        return self._metric._compute_score_from_stats(sums.tolist()).score

    @property
    def signature(self) -> str:
        """sacrebleu's signature; asked for after `statistics`, it knows the number of references."""
        return str(self._metric.get_signature())


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> CorpusScore:
    """Corpus BLEU (Papineni et al., 2002), sacrebleu's defaults. UserError: unequal lengths, no sentence."""
    from sacrebleu.metrics import BLEU

    return _sacrebleu_score(BLEU(), hypotheses, references)


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> CorpusScore:
    """Corpus chrF2 (Popovic, 2015), sacrebleu's defaults. UserError: unequal lengths, no sentence."""
    from sacrebleu.metrics import CHRF

    return _sacrebleu_score(CHRF(), hypotheses, references)


def copied_fraction(hypotheses: Sequence[str], sources: Sequence[str]) -> float:
    """Share (0 to 1) of hypotheses with exactly the words of their source, spacing aside."""
    _check_not_empty(hypotheses)
    same = copied_per_sentence(hypotheses, sources)
    return sum(same) / len(same)


def copied_per_sentence(hypotheses: Sequence[str], sources: Sequence[str]) -> list[bool]:
    """Whether each hypothesis has exactly the words of its source, spacing aside."""
    _check_lengths(hypotheses, sources)
    return [hyp.split() == src.split() for hyp, src in zip(hypotheses, sources, strict=True)]


def changed_fraction(hypotheses: Sequence[str], sources: Sequence[str]) -> float:
    """Mean over sentences of word edits against the source per word of the longer: 0 the same, 1 all new."""
    _check_not_empty(hypotheses)
    changes = changed_per_sentence(hypotheses, sources)
    return sum(changes) / len(changes)


def changed_per_sentence(hypotheses: Sequence[str], sources: Sequence[str]) -> list[float]:
    """Word edits of each hypothesis against its source per word of the longer of the two."""
    _check_lengths(hypotheses, sources)
    changes = []
    for hyp, src in zip(hypotheses, sources, strict=True):
        hyp_words, src_words = hyp.split(), src.split()
        longer = max(len(hyp_words), len(src_words), 1)
        changes.append(word_edit_distance(hyp_words, src_words) / longer)
    return changes


def word_edit_distance(left: Sequence[str], right: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn `left` into `right` (Levenshtein, 1966)."""
    codes = {word: code for code, word in enumerate({*left, *right})}
    right_codes = np.array([codes[word] for word in right], dtype=np.int64)
    columns = np.arange(len(right) + 1)
    row = columns
    for number, word in enumerate(left, start=1):
        substituted = row[:-1] + (right_codes != codes[word])
        best = np.concatenate(([number], np.minimum(substituted, row[1:] + 1)))
        # row[j] = min over k <= j of best[k] + (j - k): insertions after position k
        row = np.minimum.accumulate(best - columns) + columns
    return int(row[-1])


def _sacrebleu_score(metric, hypotheses: Sequence[str], references: Sequence[str]) -> CorpusScore:
    _check_not_empty(hypotheses)
    _check_lengths(hypotheses, references)
    score = metric.corpus_score(list(hypotheses), [list(references)]).score
    return CorpusScore(score, str(metric.get_signature()))


def _check_not_empty(hypotheses: Sequence[str]) -> None:
    if not hypotheses:
        raise UserError("no sentences to score")


def _check_lengths(hypotheses: Sequence[str], others: Sequence[str]) -> None:
    if len(hypotheses) != len(others):
        raise UserError(f"{len(hypotheses)} hypotheses against {len(others)} other texts: give one for each")
