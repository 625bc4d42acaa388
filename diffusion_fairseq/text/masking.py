"""Which positions of a sequence are noised: MASKING names the laws of training, GivenPositions says it outright.

A law takes a length (at least 1) and a random generator, and gives (length,) bool, True where a position is noised: at
least one is.
"""

import re
from typing import Callable, Dict, List

import numpy as np

Law = Callable[[int, np.random.Generator], np.ndarray]
# Words that stand for what is to be written, fairseq's and BERT's; a dictionary's is the first one that it holds.
MASKS = ("<mask>", "[MASK]")
MAX_SPANS = 9  # k_max (DDLM, section 3.4)


def full(length: int, random: np.random.Generator) -> np.ndarray:
    """All positions."""
    return np.ones(length, dtype=bool)


def prefix(length: int, random: np.random.Generator) -> np.ndarray:
    """All from a uniform start on (CDCD, section 3.3)."""
    return np.arange(length) >= random.integers(length)


def at_random(length: int, random: np.random.Generator) -> np.ndarray:
    """Each with a probability that is itself uniform (CDCD, section 3.3: as in masked language models)."""
    noised = random.random(length) < random.random()
    noised[random.integers(length)] = True
    return noised


def mixed(length: int, random: np.random.Generator) -> np.ndarray:
    """Positions at random from a uniform start on (CDCD, section 3.3)."""
    start = int(random.integers(length))
    return np.concatenate([np.zeros(start, dtype=bool), at_random(length - start, random)])


def span(length: int, random: np.random.Generator) -> np.ndarray:
    """Cut into k spans, k uniform in 1 .. 9, at distinct places; each is noised with probability 1/2, and one of them
    where none is (DDLM, section 3.4)."""
    spans = int(random.integers(1, min(MAX_SPANS, length) + 1))
    cuts = np.sort(random.choice(np.arange(1, length), size=spans - 1, replace=False))
    noised = random.random(spans) < 0.5
    if not noised.any():
        noised[random.integers(spans)] = True
    return np.repeat(noised, np.diff(np.concatenate([[0], cuts, [length]])))


MASKING: Dict[str, Law] = {"full": full, "prefix": prefix, "random": at_random, "mixed": mixed, "span": span}


class GivenPositions:
    """A law that gives the same positions of every sequence: "0:32" a prefix, "0:16,48:64" both ends, "none".

    Args:
        text: Python slices with commas between.
    Raises:
        ValueError: it is something else.
    """

    def __init__(self, text: str):
        self.slices: List[slice] = []
        for part in text.split(",") if text != "none" else ():
            found = re.fullmatch(r"(-?[0-9]{1,9})?:(-?[0-9]{1,9})?", part.strip())
            if not found:
                raise ValueError(f"{text!r} are no positions: give slices such as 0:32 or 0:16,48:64, or none")
            self.slices.append(slice(*(int(end) if end else None for end in found.groups())))

    def __call__(self, length: int, random: np.random.Generator) -> np.ndarray:
        noised = np.ones(length, dtype=bool)
        for part in self.slices:
            noised[part] = False
        return noised
