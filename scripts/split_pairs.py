#!/usr/bin/env python3
"""Two files of your own, a text a line, source and target in the same order -> {train,valid,test}.{src,tgt}.

    python scripts/split_pairs.py articles.txt summaries.txt --out runs/mine/text

Pairs are drawn by their source's text, so that the same files always give the same splits, and a source that comes
several times stays in one of them. Pairs with an empty side are left out and counted. Both files are held in memory.
"""

import argparse
import sys
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import _environment  # noqa: F401  says what this Python lacks
from _corpus import SPLITS, fraction
from _data import DataError, check_same_length, run, utf8_lines, write_files
from _option_types import count

Pair = Tuple[str, str]
SIDES = ("src", "tgt")
MOST = 1000  # pairs of valid and of test that are enough for a score


def read_pairs(source: Path, target: Path) -> List[Pair]:
    """All pairs, with single blanks and none at their ends: binarise.py would take some of the others for line ends.

    Raises:
        DataError: one file has more lines, or a line is not UTF-8.
    """
    check_same_length(source, target, "line n of one must belong to line n of the other")
    with source.open("rb") as sources, target.open("rb") as targets:
        return [(" ".join(one.split()), " ".join(other.split()))
                for one, other in zip(utf8_lines(sources, str(source)), utf8_lines(targets, str(target)))]


def split_pairs(pairs: Sequence[Pair], valid: int, test: int) -> Dict[str, List[Pair]]:
    """The pairs of each of SPLITS in their order; valid and test get so many, or more where a source comes often.

    Raises:
        DataError: nothing is left to train on.
    """
    of_source: Dict[str, List[Pair]] = {}
    for pair in pairs:
        of_source.setdefault(pair[0], []).append(pair)
    split_of, left = {}, {"valid": valid, "test": test}
    for source in sorted(of_source, key=lambda text: fraction(text.encode(), b"split")):
        split = next((split for split, wanted in left.items() if wanted > 0), "train")
        split_of[source] = split
        if split in left:
            left[split] -= len(of_source[source])
    found = {split: [pair for pair in pairs if split_of[pair[0]] == split] for split in SPLITS}
    lacking = [split for split in SPLITS if not found[split]]
    if lacking:
        raise DataError(f"{len(of_source):,} different sources are too few, {' and '.join(lacking)} would be empty: "
                        "give more text, or a smaller --valid and --test")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="what a model reads, a text a line")
    parser.add_argument("target", type=Path, help="what it is to write, a text a line")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="made when absent; scripts/binarise.py looks for runs/NAME/text")
    for split in ("valid", "test"):
        parser.add_argument(f"--{split}", type=count(1), metavar="N",
                            help=f"pairs of {split} (default: a twentieth of all, at most {MOST:,})")
    arguments = parser.parse_args()
    pairs = read_pairs(arguments.source, arguments.target)
    kept = [pair for pair in pairs if all(pair)]
    default = max(1, min(MOST, len(kept) // 20))
    valid, test = (default if wanted is None else wanted for wanted in (arguments.valid, arguments.test))
    found = split_pairs(kept, valid, test)
    write_files(arguments.out, {f"{split}.{side}": [pair[column] for pair in found[split]]
                                for split in SPLITS for column, side in enumerate(SIDES)})
    counts = ", ".join(f"{split} {len(found[split]):,}" for split in SPLITS)
    print(f"{arguments.out}: {counts}" + (f"; {len(pairs) - len(kept):,} with an empty side left out"
                                          if len(kept) < len(pairs) else ""))


if __name__ == "__main__":
    sys.exit(run(main))
