#!/usr/bin/env python3
"""Build the summarisation set debsum from apt's package indexes: extended description -> one-line synopsis.

Fetches the English indexes of this machine's own apt sources into a temporary folder (about 15 MB), or reads
those of --indexes, and writes {train,valid,test}.{src,tgt,id} and debsum.json (the counts) into --out. valid
and test are the packages of the pin file, as far as the index still has them with the pinned text. Needs
neither root nor any package, and leaves the system's apt alone. Standard library only.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Iterable, Iterator

import _debsum
from _apt import Apt
from _data import DataError, progress, read_compressed, run, sha256, utf8_lines, write_files
from _debsum import Package, Pair

SCRIPTS = Path(__file__).resolve().parent
PIN = SCRIPTS.parent / "examples" / "debsum" / "pin.txt"
REPORT = "debsum.json"
Pins = dict[str, tuple[str, str]]       # {package: (split, first digits of its Description-md5)}
MIRROR_HINT = "put a mirror's Packages.xz and Translation-en.xz into a folder and name it with --indexes"


# ---- indexes

def fetch_indexes(folder: Path) -> tuple[list[Path], list[Path]]:
    """Fetch the indexes of apt's sources into folder: (Packages files, Translation-en files)."""
    listed = Apt(folder, "en", MIRROR_HINT).get("indextargets", "--format", "$(CREATED_BY)|$(CODENAME)|$(FILENAME)")
    found: dict[str, list[Path]] = {"Packages": [], "Translations": []}
    for kind, codename, name in (line.split("|", 2) for line in listed.splitlines()):
        # "bookworm-updates", "bookworm-security" and "-backports" repeat packages of the release.
        if kind in found and "-" not in codename:
            found[kind].append(Path(name))
    if not all(found.values()):
        raise DataError(f"apt's sources have no English package descriptions; {MIRROR_HINT}")
    return found["Packages"], found["Translations"]


def find_indexes(folder: Path) -> tuple[list[Path], list[Path]]:
    """The two indexes that a user put into a folder, compressed or not."""
    found = []
    for name in ("Packages", "Translation-en"):
        paths = [folder / (name + suffix) for suffix in (".xz", ".bz2", ".gz", "")]
        present = [path for path in paths if path.is_file()]
        if not present:
            raise DataError(f"{folder} holds no {paths[0].name}; {MIRROR_HINT}")
        found.append(present[:1])
    return found[0], found[1]


def stanzas(path: Path, wanted: set[str]) -> Iterator[dict[str, str]]:
    """The wanted fields of each stanza of an index; continued lines are joined by line feeds."""
    fields: dict[str, str] = {}
    field = ""
    for line in utf8_lines(read_compressed(path), str(path)):
        if not line:
            if fields:
                yield fields
            fields, field = {}, ""
        elif line[0] in " \t":
            if field:
                fields[field] += "\n" + line
        else:
            name, _, value = line.partition(":")
            field = name if name in wanted else ""
            if field:
                fields[field] = value.strip()
    if fields:
        yield fields


def read_packages(indexes: tuple[list[Path], list[Path]]) -> list[Package]:
    """The packages whose English description the indexes hold, each name once."""
    texts = {}
    for path in indexes[1]:
        for fields in stanzas(path, {"Description-md5", "Description-en"}):
            if len(fields) == 2:
                texts[fields["Description-md5"]] = fields["Description-en"]
    packages = {}
    for path in indexes[0]:
        for fields in stanzas(path, {"Package", "Source", "Section", "Description-md5"}):
            if "Package" in fields and fields.get("Description-md5") in texts:
                name, md5 = fields["Package"], fields["Description-md5"]
                synopsis, _, body = texts[md5].partition("\n")
                packages[name] = Package(name, fields.get("Source", name).split()[0],
                                         fields.get("Section", "unknown"), md5, synopsis, body)
    if not packages:
        raise DataError(f"{indexes[0][0]} and {indexes[1][0]} have no package in common; "
                        "take both from one release")
    return list(packages.values())


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

    pairs, boilerplate = _debsum.make_pairs(packages)
    stage("packages with an English description", pairs)
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


def columns(splits: dict[str, list[Pair]]) -> dict[str, list[str]]:
    """{file name: lines} of the aligned files; .id has package, source, section and md5 between tabs."""
    files = {}
    for split in ("train", "valid", "test"):
        files[f"{split}.src"] = [pair.description for pair in splits[split]]
        files[f"{split}.tgt"] = [pair.synopsis for pair in splits[split]]
        files[f"{split}.id"] = ["\t".join(pair[:4]) for pair in splits[split]]
    return files


def is_prepared(out: Path, inputs: dict[str, str]) -> bool:
    """Whether out holds, unchanged, what these inputs gave at an earlier run."""
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        return report["inputs"] == inputs and all(sha256(out / name) == digest
                                                  for name, digest in report["sha256"].items())
    except (OSError, ValueError, KeyError):
        return False


def prepare(out: Path, indexes: Path | None, pin: Path, force: bool = False) -> dict[str, int]:
    """Build debsum into out, or keep it if it is there already; returns {split: pairs}."""
    inputs = {"indexes": sha256(*sum(find_indexes(indexes), [])) if indexes else "apt", "pin": sha256(pin),
              "recipe": sha256(SCRIPTS / "_debsum.py", SCRIPTS / "prepare_debsum.py")}
    if not force and is_prepared(out, inputs):
        progress(f"{out} already holds debsum; --force builds it again")
        return json.loads((out / REPORT).read_text(encoding="utf-8"))["pairs"]
    pins = read_pins(pin)
    if indexes:
        packages = read_packages(find_indexes(indexes))
    else:
        progress("fetching the package indexes of apt's sources")
        with tempfile.TemporaryDirectory(prefix="debsum-") as folder:
            packages = read_packages(fetch_indexes(Path(folder)))
    splits, counts = select(packages, pins)
    files = columns(splits)
    sizes = {split: len(splits[split]) for split in ("train", "valid", "test")}
    (out / REPORT).unlink(missing_ok=True)
    write_files(out, files)
    digests = {name: sha256(out / name) for name in files}
    report = {"inputs": inputs, "pairs": sizes, **counts, "sha256": digests}
    write_files(out, {REPORT: json.dumps(report, indent=1).split("\n")})
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
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for the files; made when absent, kept when it already holds this set")
    parser.add_argument("--indexes", type=Path, metavar="DIR",
                        help="read Packages and Translation-en (.xz, .bz2, .gz or plain) of DIR, without apt")
    parser.add_argument("--pin", type=Path, default=PIN, metavar="FILE",
                        help="evaluation packages, one \"valid|test package md5-prefix\" a line "
                             "(default: examples/debsum/pin.txt)")
    parser.add_argument("--force", action="store_true", help="build again even if DIR holds this set")
    arguments = parser.parse_args()
    for split, count in prepare(arguments.out, arguments.indexes, arguments.pin, arguments.force).items():
        print(f"{arguments.out / split}.src, .tgt, .id: {count:,} pairs")


if __name__ == "__main__":
    sys.exit(run(main))
