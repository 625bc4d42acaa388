"""ROUGE as GLGE's official evaluation and GENIE's own script compute it, with what they do to the text before.

GLGE (Liu et al., 2021) calls ROUGE-1.5.5 with stemming: F1 and, over texts whose sentences are separated by newlines,
the summary-level ROUGE-L. GENIE's scripts call the py-rouge package with weight_factor=1.2 instead. That factor is
meant for ROUGE-W, but py-rouge takes precision and recall of ROUGE-L to the power of 1/1.2 too, which raises the F1
(0.30 to 0.37): such a ROUGE-L is comparable with nothing but itself, so that it has a name of its own here.

Computed from rouge-score's precision and recall. Left out: the exceptions to stemming that ROUGE-1.5.5 and py-rouge
take from WordNet ("went" -> "go"). Measured against py-rouge 1.1 that is 0.1 points on package descriptions and 0.4 on
Bible verses, whose verbs are often irregular.
"""

import re
from typing import Callable, Dict, List, Sequence

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import overlap

LONGEST_DROPPED = 4  # CNN/DM: sentences of so many words or fewer are dropped
LARGEST_REPEATED = 0.7  # and those of which a larger share of the words stood in an earlier one
WEIGHT_FACTOR = 1.2
SENTENCE_MARK = re.compile(r"\s*(?:\[X_SEP\]|<S_SEP>|< s _ sep >|\n)\s*", re.IGNORECASE)
BRACKETS = {"(": "-LRB-", ")": "-RRB-", "[": "-LSB-", "]": "-RSB-", "{": "-LCB-", "}": "-RCB-"}
# Word pieces back to Penn Treebank words, in this order; each pattern sees words between single blanks.
REJOINED = [(re.compile(pattern), replacement) for pattern, replacement in (
    (r"n ' t(?!\S)", " n't"),
    (r"(?<!\S)' (s|d|ll)(?!\S)", r"'\1"),
    (r"(?<!\S)\. \. \.(?!\S)", "..."),
    (r"(?<!\S)(\d[\d,]*) , (?=\d[\d,]*(?!\S))", r"\1,"),
    (r"(?<!\S)(\d+) \. (?=\d+(?!\S))", r"\1."),
    (r"(?<!\S)([A-Z]) \. (?=[A-Z](?: \.|\.))", r"\1."),
    (r"(?<!\S)((?:[A-Z]\.)+[A-Z]) \.(?!\S)", r"\1."),
    (r"(?<!\S)- -(?!\S)", "--"),
    (r"(?<=\w) - (?=\w)", "-"),
)]  # fmt: skip


def rouge_per_sentence(hypotheses: Sequence[str], references: Sequence[str]) -> Dict[str, List[float]]:
    """F x 100 of each sentence: "glge1", "glge2", "glgeL" as GLGE, "pyrougeL" as GENIE's scripts.

    Args:
        hypotheses, references: newlines separate sentences.
    Raises:
        UserError: lists of unequal length, rouge-score is not installed.
    """
    found = overlap.rouge_scores(hypotheses, references, ("rouge1", "rouge2", "rougeLsum"))
    scores = {f"glge{name}": [100 * score.fmeasure for score in found[kind]]
              for name, kind in (("1", "rouge1"), ("2", "rouge2"), ("L", "rougeLsum"))}
    return {**scores, "pyrougeL": [100 * weighted_f1(s.precision, s.recall) for s in found["rougeLsum"]]}


def weighted_f1(precision: float, recall: float, weight_factor: float = WEIGHT_FACTOR) -> float:
    """F1 of precision and recall taken to the power of 1 / weight_factor."""
    precision, recall = precision ** (1 / weight_factor), recall ** (1 / weight_factor)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def signature(variant: str) -> str:
    """The settings in the style of sacrebleu's signatures; UserError for an unknown variant."""
    _check(variant)
    return f"glge:{variant}|L:summary-level|pyrougeL:p,r^(1/{WEIGHT_FACTOR})|{overlap.rouge_signature()}"


def prepare_hypothesis(text: str, variant: str) -> str:
    """What GLGE's evaluation of a set ("plain": XSum and others, "gigaword", "cnndm") does to an output."""
    _check(variant)
    return VARIANTS[variant](text)


def prepare_reference(text: str, variant: str) -> str:
    """References change in their sentence marks only, which become newlines for CNN/DM."""
    _check(variant)
    return SENTENCE_MARK.sub("\n", text) if variant == "cnndm" else text


def without_marks(text: str) -> str:
    """A text whose sentences are told apart by nothing: its words, for measures that know no sentences."""
    return SENTENCE_MARK.sub(" ", text)


def gigaword(text: str) -> str:
    """Gigaword's texts hold # for digits, of which GLGE restores the 1 alone."""
    return rejoin(text).replace("1", "#")


def cnndm(text: str) -> str:
    """Sentences on lines of their own, without the short ones and those that repeat earlier ones."""
    sentences = [rejoin(sentence) for sentence in SENTENCE_MARK.split(text)]
    kept, seen = [], set()
    for sentence in sentences:
        words = set(sentence.lower().split())
        if len(sentence.split()) <= LONGEST_DROPPED:
            continue
        if len(words & seen) / len(words) <= LARGEST_REPEATED:
            kept.append(sentence)
        seen |= words
    return "\n".join(kept)


VARIANTS: Dict[str, Callable[[str], str]] = {"plain": str, "gigaword": gigaword, "cnndm": cnndm}


def rejoin(text: str) -> str:
    """Undo a word-piece tokeniser's splitting of "do n't", "'s", "3,000", "U.N.", and name brackets as the Treebank."""
    text = " ".join(BRACKETS.get(word, word) for word in text.split())
    for pattern, replacement in REJOINED:
        text = pattern.sub(replacement, text)
    for mark, opening, closing in (('"', "``", "''"), ("'", "`", "'")):
        text = alternate(text, mark, opening, closing)
    return " ".join(text.split())


def alternate(text: str, mark: str, opening: str, closing: str) -> str:
    """Every odd lone `mark` becomes `opening`, every even one `closing`."""
    count, words = 0, []
    for word in text.split(" "):
        if word == mark:
            count += 1
            word = opening if count % 2 else closing
        words.append(word)
    return " ".join(words)


def _check(variant: str) -> None:
    if variant not in VARIANTS:
        raise UserError(f"unknown GLGE variant {variant!r}; known are {', '.join(VARIANTS)}")
