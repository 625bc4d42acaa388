"""Descriptions of packages in two languages: from whole texts to pairs of paragraphs, and their splits. No I/O."""

import hashlib
from typing import Callable, Iterable, Mapping

import _debsum
from _debsum import Package, Pair

MIN_WORDS, MAX_WORDS = 3, 100   # of either side
MAX_RATIO = 2.5             # of the longer side's letters to the shorter one's: beyond, a part is missing
SHARE = 0.05                # of the groups of source packages that goes to valid, and to test
SPLITS = ("train", "valid", "test")


def text_pairs(package: Package, own: Mapping[int, str], synopsis: str, body: str) -> list[Pair]:
    """The synopsis and the own paragraphs of a package beside those of its translation: `description` is English,
    `synopsis` the other language. Without paragraphs where the two have not as many."""
    english = {-1: " ".join(package.synopsis.split())}
    other = {-1: " ".join(synopsis.split()), **dict(enumerate(_debsum.paragraphs(body)))}
    if len(other) == 1 + len(_debsum.paragraphs(package.body)):
        english |= own
    return [Pair(*package[:4], text, other[number]) for number, text in english.items()]


def make_pairs(owned: Iterable[tuple[Package, Mapping[int, str]]],
               translations: Mapping[str, tuple[str, str]]) -> tuple[list[Pair], int]:
    """The pairs of all translated descriptions, each description once, and how many of those there are."""
    pairs, seen = [], set()
    for package, own in owned:
        if package.md5 in translations and package.md5 not in seen:
            seen.add(package.md5)
            pairs += text_pairs(package, own, *translations[package.md5])
    return pairs, len(seen)


def is_translated(pair: Pair) -> bool:
    return pair.description != pair.synopsis


def has_fit_lengths(pair: Pair) -> bool:
    return all(MIN_WORDS <= len(text.split()) <= MAX_WORDS for text in (pair.description, pair.synopsis))


def has_like_lengths(pair: Pair) -> bool:
    short, long = sorted((len(pair.description), len(pair.synopsis)))
    return long <= MAX_RATIO * short


FILTERS: dict[str, Callable[[Pair], bool]] = {
    "not the same text in both languages": is_translated,
    f"{MIN_WORDS} to {MAX_WORDS} words on both sides": has_fit_lengths,
    f"no side more than {MAX_RATIO} times as long as the other": has_like_lengths,
}


def split_of(group: str) -> str:
    """Where the pairs of a group of source packages go: a function of the name alone."""
    place = int.from_bytes(hashlib.md5(group.encode()).digest()[:8], "little") / (1 << 64)
    return "valid" if place < SHARE else "test" if place < 2 * SHARE else "train"


def split(pairs: Iterable[Pair], groups: Mapping[str, str]) -> dict[str, list[Pair]]:
    """All pairs of a group of source packages in one split, in an order that depends on the texts alone; no training
    pair has, on either side, the text or a long run of words of an evaluation pair."""
    splits: dict[str, list[Pair]] = {name: [] for name in SPLITS}
    for pair in sorted(pairs, key=lambda pair: hashlib.md5(f"{pair.md5} {pair.description}".encode()).digest()):
        splits[split_of(groups[pair.source])].append(pair)
    evaluation = splits["valid"] + splits["test"]
    for _ in ("English", "the other language"):
        splits["train"] = swapped(_debsum.drop_leaks(splits["train"], evaluation))
        evaluation = swapped(evaluation)
    return splits


def swapped(pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs with their sides in each other's place."""
    return [pair._replace(description=pair.synopsis, synopsis=pair.description) for pair in pairs]
