#!/usr/bin/env python3
"""Build a translation set from apt's package indexes: descriptions in German (or French, ...) -> English.

Fetches the indexes of this machine's own apt sources in both languages into a temporary folder (about 18 MB), or reads
those of --indexes, and writes {train,valid,test}.{src,tgt,id} and translation.json (the counts) into --out: synopses
and paragraphs of descriptions that Debian's translators have translated, found by Description-md5. Needs neither root
nor any package, and leaves the system's apt alone. Standard library only.
"""

import argparse
import sys
from operator import attrgetter
from pathlib import Path

import _environment  # noqa: F401  says what this Python lacks
import _debsum
from _data import DataError, progress, run, sha256
from _debsum import Package, Pair
from _descriptions import (
    SCRIPTS,
    add_set_options,
    columns,
    index_checksum,
    indexes_of,
    kept_set,
    read_descriptions,
    read_packages,
    write_set,
)
from _translation import FILTERS, SPLITS, make_pairs, split

REPORT = "translation.json"
RECIPE = ("_debsum.py", "_descriptions.py", "_translation.py", "prepare_translation.py")


def select(packages: list[Package], translations: dict[str, tuple[str, str]]) -> tuple[dict[str, list[Pair]], dict]:
    """All splits, and the counts of every stage."""
    counts: dict = {"stages": {}}

    def stage(what: str, left: list[Pair]) -> list[Pair]:
        counts["stages"][what] = len(left)
        progress(f"{len(left):>9,} {what}")
        return left

    owned, boilerplate = _debsum.own_paragraphs(packages)
    pairs, descriptions = make_pairs(owned, translations)
    counts["translated descriptions"], counts["boilerplate paragraphs"] = descriptions, boilerplate
    progress(f"          ({descriptions:,} translated descriptions; {boilerplate:,} boilerplate paragraphs dropped)")
    stage("synopses and paragraphs", pairs)
    for what, fits in FILTERS.items():
        pairs = stage(what, [pair for pair in pairs if fits(pair)])
    pairs = stage("one for each translation and near-duplicate text", _debsum.drop_duplicates(pairs))
    groups = _debsum.group_sources(_debsum.make_pairs(owned))
    counts["groups of sources"] = len(set(groups.values()))
    splits = split(pairs, groups)
    stage("no training pair with a text or a long run of words of the evaluation sets", sum(splits.values(), []))
    return splits, counts


def prepare(out: Path, indexes: Path | None, language: str = "de", force: bool = False) -> dict[str, int]:
    """Build the set into out, or keep it if it is there already; returns {split: pairs}."""
    languages = ("en", language)
    inputs = {"indexes": index_checksum(indexes, *languages), "language": language,
              "recipe": sha256(*(SCRIPTS / name for name in RECIPE))}
    if not force and (sizes := kept_set(out, REPORT, inputs)):
        progress(f"{out} already holds this set; --force builds it again")
        return sizes
    with indexes_of(indexes, *languages) as found:
        packages, translations = read_packages(found), read_descriptions(found, language)
    splits, counts = select(packages, translations)
    if not all(splits.values()):
        raise DataError(f"the indexes have too few descriptions in {language} for three splits; take those of a whole "
                        "release")
    sizes = {name: len(splits[name]) for name in SPLITS}
    files = columns(splits, attrgetter("synopsis"), attrgetter("description"))
    write_set(out, REPORT, files, {"inputs": inputs, "pairs": sizes, **counts})
    return sizes


def language_code(text: str) -> str:
    if text == "en" or not text.replace("_", "").isalpha():
        raise argparse.ArgumentTypeError(f"{text!r} is no language beside English, such as de, fr, pt_BR")
    return text


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Without apt, put Packages.xz of a mirror's dists/bookworm/main/binary-amd64 and Translation-en.xz and\n"
               "Translation-de.xz of its dists/bookworm/main/i18n (.bz2, .gz will do) into a folder and name it with\n"
               "--indexes.\n"
               "The texts belong to the packages' authors and translators: prepare them, don't redistribute them.\n"
               "Example: scripts/prepare_translation.py --out data/de-en")
    add_set_options(parser)
    parser.add_argument("--language", type=language_code, default="de", metavar="CODE",
                        help="of the sources: de, fr, it, ... (default: de)")
    arguments = parser.parse_args()
    for name, count in prepare(arguments.out, arguments.indexes, arguments.language, arguments.force).items():
        print(f"{arguments.out / name}.src, .tgt, .id: {count:,} pairs")


if __name__ == "__main__":
    sys.exit(run(main))
