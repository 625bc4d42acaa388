"""Traces as one self-contained HTML page: small JSON in a template that needs no network."""

import json
import re
import string
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

from _trace import Trace
from fairseq.data import Dictionary
from torch import Tensor

from diffusion_fairseq.generator import FIRST_WORD_PIECE

PLACE = "/*data*/"  # in a template
INCLUDED = re.compile(r"(?:/\*|<!--)include ([\w.]+)(?:\*/|-->)")  # a file beside it
# A probability as one letter: the first is 0, the last 1.
CONFIDENCES = string.digits + string.ascii_letters
GIVEN = "-"


class Spelling:
    """Tokens as text that is read: a piece of a word after the first has no blank before it.

    Knows sentencepiece's marks, BERT's word pieces, subword-nmt's and whole words, by what the dictionary holds.

    Args:
        dictionary: of the tokens.
        hidden: tokens that are no text.
    """

    def __init__(self, dictionary: Dictionary, hidden: Sequence[int] = ()):
        self.symbols, self.end = dictionary.symbols, dictionary.eos()
        self.hidden = {dictionary.pad(), dictionary.bos(), *hidden}
        self.piece = _piece(self.symbols)

    def __getitem__(self, token: int) -> str:
        """One token, with the blanks that belong to it."""
        if token in self.hidden:
            return ""
        return " \u00b6" if token == self.end else self.piece(self.symbols[token])

    def text(self, tokens: Sequence[int]) -> str:
        """A text, with single blanks."""
        return " ".join("".join(self[token] for token in tokens).split())

    def prompt(self, tokens: Sequence[int], mask: int) -> str:
        """A prompt, with the number of tokens wherever some are to be written."""
        parts, count = [], 0
        for token in [*tokens, None]:
            if token == mask:
                count += 1
                continue
            if count:
                parts.append(f" [{count} token{'s' * (count > 1)}] ")
                count = 0
            if token is not None:
                parts.append(self[token])
        return " ".join("".join(parts).split())


def _piece(symbols: Sequence[str]) -> Callable[[str], str]:
    if any(symbol.startswith("\u2581") for symbol in symbols):
        return lambda symbol: symbol.replace("\u2581", " ")
    if FIRST_WORD_PIECE in symbols:
        return lambda symbol: symbol[2:] if symbol.startswith("##") else " " + symbol
    if any(symbol.endswith("@@") for symbol in symbols):
        return lambda symbol: symbol[:-2] if symbol.endswith("@@") else symbol + " "
    return lambda symbol: " " + symbol


class Strings:
    """Every string once, numbered as they come."""

    def __init__(self):
        self.places: Dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.places.setdefault(text, len(self.places))


def coded(trace: Trace, number: Callable[[int], int], before: Sequence[int] = ()) -> Dict[str, Any]:
    """One candidate: of each step the positions whose token is another one than before, each followed by the number of
    its string; a letter of CONFIDENCES for each word of the text, or GIVEN; and the curves. `before` are the tokens
    that it had, where steps went before."""
    tokens, given = trace.tokens.tolist(), trace.given.tolist()
    return {
        "exit": trace.exit,
        "changes": [changed(before, after, number) for before, after in zip([before, *tokens], tokens)],
        "confidence": [letters(sure[:count], given) for sure, count in zip(trace.confidence.tolist(), trace.text)],
        "entropy": rounded(trace.entropy), "norm": rounded(trace.norm),
    }


def changed(before: Sequence[int], after: List[int], number: Callable[[int], int]) -> List[int]:
    """Position and string of every token that is another one, in one list."""
    return [value for place, token in enumerate(after) if place >= len(before) or token != before[place]
            for value in (place, number(token))]


def letters(probabilities: List[float], given: List[bool]) -> str:
    last = len(CONFIDENCES) - 1
    return "".join(GIVEN if fixed else CONFIDENCES[round(min(max(value, 0.0), 1.0) * last)]
                   for value, fixed in zip(probabilities, given))


def rounded(values: Tensor) -> List[float]:
    return [round(value, 2) for value in values.tolist()]


def page(template: str, data: Dict[str, Any]) -> str:
    """A template of this folder with what it includes and its data. No text of the data can end the script that holds
    it: JSON has no other < than those escaped."""
    folder = Path(__file__).parent

    def included(found: re.Match) -> str:
        return (folder / found[1]).read_text(encoding="utf-8").rstrip("\n")

    held = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    before, after = INCLUDED.sub(included, (folder / template).read_text(encoding="utf-8")).split(PLACE)
    return before + held + after
