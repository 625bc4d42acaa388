"""Quora's question pairs in the layouts of their distributors: paraphrases alone, each question in one split only."""

import csv
import hashlib
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, Sequence, Tuple

from _data import DataError, least_of_groups, utf8_lines

Pairs = Iterator[Tuple[str, str]]
COLUMNS = ("question1", "question2", "is_duplicate")
SIZES = {"test": 2500, "valid": 2048}  # pairs, as in DiffuSeq's split; the others are the training set


@dataclass(frozen=True)
class Named:
    """A layout of files with these names."""

    names: Tuple[str, ...]

    def found(self, folder: Path) -> bool:
        return not self.missing(folder)

    def missing(self, folder: Path) -> List[str]:
        return [name for name in self.names if not (folder / name).is_file()]


class JsonLines(Named):
    """For each split a file of {"src": ..., "trg": ...} a line: DiffuSeq's."""

    def pairs(self, folder: Path, split: str) -> Pairs:
        path = folder / f"{split}.jsonl"
        with path.open("rb") as stream:
            for number, line in enumerate(utf8_lines(stream, str(path)), 1):
                try:
                    pair = json.loads(line)
                    source, target = pair["src"], pair["trg"]
                except (ValueError, KeyError, TypeError):
                    source = target = None
                if not (isinstance(source, str) and isinstance(target, str)):
                    raise DataError(f'{path}, line {number}: not {{"src": ..., "trg": ...}}; fetch it again')
                yield source, target


@dataclass(frozen=True)
class Questions(Named):
    """Tables of questions with a mark for duplicates, which no one has split: Quora's file, or GLUE's two with marks.

    Duplicates alone are pairs. Questions that pairs join stay in one split, which the hash of one of them chooses.
    """

    quoted: bool

    def pairs(self, folder: Path, split: str) -> Pairs:
        yield from _split(tuple(folder / name for name in self.names), self.quoted)[split]


LAYOUTS = [
    JsonLines(("train.jsonl", "valid.jsonl", "test.jsonl")),
    Questions(("quora_duplicate_questions.tsv",), quoted=True),
    Questions(("train.tsv", "dev.tsv"), quoted=False),
]


def _split(paths: Sequence[Path], quoted: bool) -> Dict[str, List[Tuple[str, str]]]:
    """The pairs of each split; those of a test set are the first groups by hash."""
    pairs = [pair for path in paths for pair in _duplicates(path, quoted)]
    groups = defaultdict(list)
    for pair, group in zip(pairs, _groups(pairs)):
        groups[group].append(pair)
    ordered = sorted(groups, key=lambda group: hashlib.md5(group.encode()).digest())
    splits: Dict[str, List[Tuple[str, str]]] = {split: [] for split in ("train", *SIZES)}
    # A set with less than ten times the evaluation's pairs keeps nine tenths for training.
    sizes = {split: min(size, len(pairs) // 20) for split, size in SIZES.items()}
    for group in ordered:
        split = next((split for split, size in sizes.items() if len(splits[split]) < size), "train")
        splits[split] += groups[group]
    return splits


def _duplicates(path: Path, quoted: bool) -> Pairs:
    """The questions of the rows that are marked 1; rows of GLUE's that are cut short are passed over."""
    with path.open("rb") as stream:
        # csv joins a quoted field over lines, whose ends must stay.
        lines = (f"{line}\n" for line in utf8_lines(stream, str(path)))
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE)
        head = next(rows, [])
        if not set(COLUMNS) <= set(head):
            raise DataError(f"{path} has no columns {', '.join(COLUMNS)} in its first line: fetch it again")
        places = [head.index(column) for column in COLUMNS]
        try:
            for row in rows:
                if len(row) == len(head) and row[places[2]] == "1":
                    yield row[places[0]], row[places[1]]
        except csv.Error as error:
            raise DataError(f"{path}, line {rows.line_num}: {error}: a quotation mark is missing, perhaps long before; "
                            "fetch it again") from None


def _groups(pairs: List[Tuple[str, str]]) -> List[str]:
    """For each pair the least question of those that pairs join with it."""
    keys = [tuple(" ".join(text.lower().split()) for text in pair) for pair in pairs]
    groups = least_of_groups(keys)
    return [groups[one] for one, _ in keys]
