#!/usr/bin/env python3
"""Unpack the embedded set kjvweb: King James verse -> World English Bible verse. Standard library only."""

import argparse
import sys
import tarfile
from pathlib import Path

import _environment  # noqa: F401  says what this Python lacks
from _data import DataError, check_sha256, run, utf8_lines, write_files

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "kjvweb"
SPLITS = ("train", "valid", "test")

Pairs = list[tuple[str, str]]


def read_archive(archive: Path, sums: Path) -> dict[str, Pairs]:
    """Verify the archive and read its six files: {split: [(source, target), ...]}."""
    check_sha256(archive, sums)
    columns: dict[str, list[str]] = {}
    try:
        with tarfile.open(archive, "r:xz") as tar:
            for name in (f"{split}.{side}" for split in SPLITS for side in ("src", "tgt")):
                # Nothing is extracted, so a path inside the archive has no effect.
                columns[name] = list(utf8_lines(tar.extractfile(name), f"{archive}:{name}"))
    except KeyError as error:
        raise DataError(f"{archive}: {error.args[0]}; restore it from the repository") from None
    except (tarfile.TarError, EOFError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); "
                        "use a Python that has the lzma module") from None
    pairs = {}
    for split in SPLITS:
        source, target = columns[f"{split}.src"], columns[f"{split}.tgt"]
        if len(source) != len(target):
            raise DataError(f"{archive}: {split}.src has {len(source)} lines, {split}.tgt {len(target)}; "
                            "restore it from the repository")
        pairs[split] = list(zip(source, target))
    return pairs


def keep_short(pairs: Pairs, max_words: int) -> Pairs:
    """The pairs of at most max_words white-space separated words on both sides."""
    return [pair for pair in pairs if max(len(side.split()) for side in pair) <= max_words]


def prepare(archive: Path, sums: Path, out: Path,
            max_words: int | None = None) -> tuple[dict[str, int], list[str]]:
    """Write {train,valid,test}.{src,tgt} into out; returns ({split: pairs}, names of changed files)."""
    splits = read_archive(archive, sums)
    if max_words is not None:
        splits = {split: keep_short(pairs, max_words) for split, pairs in splits.items()}
    files = {}
    for split, pairs in splits.items():
        if not pairs:
            raise DataError(f"--max-words {max_words} keeps no pair of {split}; take a larger number")
        files[f"{split}.src"] = [source for source, _ in pairs]
        files[f"{split}.tgt"] = [target for _, target in pairs]
    return {split: len(pairs) for split, pairs in splits.items()}, write_files(out, files)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog="Example: scripts/prepare_kjvweb.py --out data/kjvweb --max-words 14")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for {train,valid,test}.{src,tgt}; made when absent")
    parser.add_argument("--max-words", type=int, metavar="N",
                        help="keep the pairs of at most N words on both sides (default: all of them)")
    arguments = parser.parse_args()
    counts, changed = prepare(EXAMPLE / "kjvweb.tar.xz", EXAMPLE / "SHA256SUMS",
                              arguments.out, arguments.max_words)
    for split, count in counts.items():
        state = "written" if any(name.startswith(split) for name in changed) else "already there"
        print(f"{arguments.out / split}.src, .tgt: {count:,} pairs, {state}")


if __name__ == "__main__":
    sys.exit(run(main))
