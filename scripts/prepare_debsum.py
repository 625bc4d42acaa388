#!/usr/bin/env python3
"""Build the summarisation set debsum from apt's package indexes: extended description -> one-line synopsis.

Fetches the English indexes of this machine's own apt sources into a temporary folder (about 15 MB), or reads
those of --indexes, and writes {train,valid,test}.{src,tgt,id} and debsum.json (the counts) into --out. valid
and test are the packages of the pin file, as far as the index still has them with the pinned text. Needs
neither root nor any package, and leaves the system's apt alone. Standard library only.
"""

import argparse
import hashlib
import sys
from collections import Counter
from operator import attrgetter
from pathlib import Path
from typing import Iterable

import _environment  # noqa: F401  says what this Python lacks
import _debsum
from _data import DataError, progress, run, sha256, utf8_lines
from _debsum import Package, Pair
from _descriptions import (
    SCRIPTS,
    add_set_options,
    columns,
    index_checksum,
    indexes_of,
    kept_set,
    read_packages,
    write_set,
)

PIN = SCRIPTS.parent / "examples" / "debsum" / "pin.txt"
REPORT = "debsum.json"
RECIPE = ("_debsum.py", "_descriptions.py", "prepare_debsum.py")
Pins = dict[str, tuple[str, str]]       # {package: (split, first digits of its Description-md5)}


# ---- the evaluation set

def read_pins(path: Path) -> Pins:
    """The pins of a file in its order."""
    pins = {}
    with open(path, "rb") as stream:
        for number, line in enumerate(utf8_lines(stream, str(path)), 1):
            fields = line.split()
            if len(fields) != 3 or fields[0] not in ("valid", "test"):
                raise DataError(f"{path}, line {number}: not \"valid|test package md5-prefix\"; "
                                "restore the file")
            pins[fields[1]] = (fields[0], fields[2])
    return pins


def take_pinned(pairs: Iterable[Pair], pins: Pins) -> tuple[dict[str, list[Pair]], Counter]:
    """({"valid": pairs, "test": pairs} in the order of the pins, counts of missing and changed packages)."""
    named = {pair.name: pair for pair in pairs if pair.name in pins}
    splits: dict[str, list[Pair]] = {"valid": [], "test": []}
    lost = Counter(missing=0, changed=0)
    for name, (split, prefix) in pins.items():
        if name not in named:
            lost["missing"] += 1
        elif not named[name].md5.startswith(prefix) or not named[name].description:
            lost["changed"] += 1
        else:
            splits[split].append(named[name])
    return splits, lost


# ---- the whole

def select(packages: list[Package], pins: Pins) -> tuple[dict[str, list[Pair]], dict]:
    """All splits, and the counts of every stage. The order of the training pairs depends on names alone."""
    counts: dict = {"stages": {}}

    def stage(what: str, left: list[Pair]) -> list[Pair]:
        counts["stages"][what] = len(left)
        progress(f"{len(left):>9,} {what}")
        return left

    owned, boilerplate = _debsum.own_paragraphs(packages)
    pairs = stage("packages with an English description", _debsum.make_pairs(owned))
    progress(f"          ({boilerplate:,} boilerplate paragraphs dropped)")
    splits, lost = take_pinned(pairs, pins)
    counts["boilerplate paragraphs"], counts["pinned"] = boilerplate, {"packages": len(pins), **lost}
    if not splits["valid"] or not splits["test"]:
        raise DataError("the index has no pinned package with the pinned text; take that of Debian 12")
    evaluation = splits["valid"] + splits["test"]
    held = [pair for pair in pairs if pair.name in pins]
    pairs = [pair for pair in pairs if pair.name not in pins]
    for what, keep in _debsum.FILTERS.items():
        pairs = stage(what, [pair for pair in pairs if keep(pair)])
    groups = _debsum.group_sources(held + pairs)
    counts["groups of sources"] = len(set(groups.values()))
    progress(f"          ({counts['groups of sources']:,} groups of {len(groups):,} sources)")
    taken = {groups[pair.source] for pair in held}
    pairs = stage("in no group with a pinned package",
                  [pair for pair in pairs if groups[pair.source] not in taken])
    pairs = stage("one for each synopsis and near-duplicate description", _debsum.drop_duplicates(pairs))
    pairs = stage("no synopsis or long run of words of the evaluation set",
                  _debsum.drop_leaks(pairs, evaluation))
    splits["train"] = sorted(pairs, key=lambda pair: hashlib.md5(pair.name.encode()).digest())
    return splits, counts


def prepare(out: Path, indexes: Path | None, pin: Path, force: bool = False) -> dict[str, int]:
    """Build debsum into out, or keep it if it is there already; returns {split: pairs}."""
    inputs = {"indexes": index_checksum(indexes, "en"), "pin": sha256(pin),
              "recipe": sha256(*(SCRIPTS / name for name in RECIPE))}
    if not force and (sizes := kept_set(out, REPORT, inputs)):
        progress(f"{out} already holds debsum; --force builds it again")
        return sizes
    pins = read_pins(pin)
    with indexes_of(indexes, "en") as found:
        packages = read_packages(found)
    splits, counts = select(packages, pins)
    sizes = {split: len(splits[split]) for split in ("train", "valid", "test")}
    files = columns(splits, attrgetter("description"), attrgetter("synopsis"))
    write_set(out, REPORT, files, {"inputs": inputs, "pairs": sizes, **counts})
    for what, count in counts["pinned"].items():
        if what != "packages" and count:
            progress(f"warning: {count:,} of {len(pins):,} pinned packages {what} in this index, left out")
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Without apt, put Packages.xz of a mirror's dists/bookworm/main/binary-amd64 and\n"
               "Translation-en.xz of its dists/bookworm/main/i18n (.bz2, .gz will do) into a folder and\n"
               "name it with --indexes.\n"
               "The texts belong to the packages' authors: prepare them, don't redistribute them.\n"
               "Example: scripts/prepare_debsum.py --out data/debsum")
    add_set_options(parser)
    parser.add_argument("--pin", type=Path, default=PIN, metavar="FILE",
                        help="evaluation packages, one \"valid|test package md5-prefix\" a line "
                             "(default: examples/debsum/pin.txt)")
    arguments = parser.parse_args()
    for split, count in prepare(arguments.out, arguments.indexes, arguments.pin, arguments.force).items():
        print(f"{arguments.out / split}.src, .tgt, .id: {count:,} pairs")


if __name__ == "__main__":
    sys.exit(run(main))
