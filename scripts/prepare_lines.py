#!/usr/bin/env python3
"""News or prose as it is distributed -> sentences, one a line, and the binarised data of --task diffusion_lm.

    python scripts/prepare_lines.py reuters path/to/reuters21578 --out runs/reuters
    python scripts/prepare_lines.py cc_news path/to/articles --out runs/cc_news --share 0.5
    python scripts/prepare_lines.py debian_prose data/prose --out runs/debian_prose --sentencepiece

writes into --out: text/{train,valid,test}.txt, and with scripts/binarise.py data-bin/, whose dict.txt holds <mask>.

reuters       the files reut2-000.sgm ... reut2-021.sgm of Reuters-21578, or the folders training/ and test/ of nltk's
              corpus. Test are the articles of the Lewis split, or nltk's (ModApte); valid is drawn from the others.
cc_news       JSON (an object a line, a file, or a list of them) with the article in "text" or "maintext"; or text files
              with an article a line; plain, .gz or .xz, in any folders; or train.txt, valid.txt and test.txt
debian_prose  train.txt, valid.txt and test.txt, which scripts/prepare_prose.py makes

Cleaning: entities are resolved, addresses go, quotes and dashes become plain. Segmentation: paragraphs are split into
sentences; those with fewer than 3 words, or with more numbers and marks than words, are left out, and so is one that
came before.
Words (the default): words and marks stand between spaces, in lower case unless --cased; the --vocabulary most frequent
ones are kept, the others are <unk>. --sentencepiece: sentences stay as they are, and as many subwords are learned.

Memory: 100 bytes a sentence. Interrupted, the same command begins anew with the text, or with the binarising.
"""

import argparse
import html
import json
import os
import re
import sys
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TextIO

import _environment  # noqa: F401  says what this Python lacks
from _corpus import SPLITS, digest, fraction, sentences, split_of
from _data import (
    DataError,
    check_made_of,
    keep_made_of,
    progress,
    read_compressed,
    removed_on_error,
    run,
    utf8_lines,
    write_files,
)
from _option_types import count
from _prose_text import clean
from _workers import Workers
from binarise import binarise
from prepare_pairs import MADE_OF, layout_of
from tqdm import tqdm

Documents = Iterator[tuple[str | None, str]]  # (split, None where it is to be drawn; paragraphs, a line each)
MIN_WORDS = 3
CHUNK = 64  # documents that a worker takes at a time
TOKEN = re.compile(r"\d+(?:[.,:/]\d+)*(?!\w)|\w+(?:'(?!s\b)\w+)?|'s\b|\S")
COMPRESSED = ("", ".gz", ".xz")


class Files(NamedTuple):
    """A layout of files that these patterns name, at any depth; each of them read by `documents_of`."""

    patterns: tuple[str, ...]

    def files(self, folder: Path) -> list[Path]:
        return sorted(path for pattern in self.patterns for path in folder.rglob(pattern) if path.is_file())

    def found(self, folder: Path) -> bool:
        return bool(self.files(folder))

    def missing(self, folder: Path) -> list[str]:
        return [] if self.found(folder) else [" or ".join(self.patterns)]

    def absent(self, folder: Path) -> list[str]:
        """What a complete distribution has beside what is found."""
        return []

    def documents(self, folder: Path) -> Documents:
        for path in self.files(folder):
            yield from self.documents_of(path)

    def documents_of(self, path: Path) -> Documents:
        raise NotImplementedError


# ---- Reuters-21578

ARTICLE = re.compile(r"<REUTERS\b([^>]*)>(.*?)</REUTERS>", re.DOTALL)
BODY = re.compile(r"<BODY>(.*?)</BODY>", re.DOTALL)
PARAGRAPH = re.compile(r"\n[ \t]{4,}")
SIGNATURE = re.compile(r"\s*(?:reuter|Reuter|REUTER)\s*\x03?\s*\Z")
TITLE = re.compile(r"\A(?:\S.*\n)+")  # the lines that are not indented
TICKER = re.compile(r"\s*<[A-Z][A-Z0-9.-]*>")


def reuters_paragraphs(body: str) -> str:
    """Wrapped lines, of which those that begin a paragraph are indented by four or more -> a paragraph a line."""
    text = TICKER.sub("", SIGNATURE.sub("", body))
    return "\n".join(" ".join(part.split()) for part in PARAGRAPH.split(text))


class ReutersSGML(Files):
    def absent(self, folder: Path) -> list[str]:
        names = {path.name.lower() for path in self.files(folder)}
        return [name for name in (f"reut2-{number:03}.sgm" for number in range(22)) if name not in names]

    def documents_of(self, path: Path) -> Documents:
        """The bodies; an article without one is a headline alone, or a table."""
        for attributes, article in ARTICLE.findall(path.read_text(encoding="latin-1")):
            if body := BODY.search(article):
                split = "test" if 'LEWISSPLIT="TEST"' in attributes else None
                yield split, reuters_paragraphs(html.unescape(body[1]))


class ReutersFolders(Files):
    def missing(self, folder: Path) -> list[str]:
        return [name for name in ("training", "test") if not (folder / name).is_dir()]

    def found(self, folder: Path) -> bool:
        return not self.missing(folder)

    def documents_of(self, path: Path) -> Documents:
        text = html.unescape(path.read_text(encoding="latin-1"))
        yield "test" if path.parent.name == "test" else None, reuters_paragraphs(TITLE.sub("", text))


# ---- articles and prose

class JSONArticles(Files):
    def documents_of(self, path: Path) -> Documents:
        for where, record in json_records(path):
            found = [record[key] for key in ("text", "maintext") if key in record] if isinstance(record, dict) else []
            if not found or not all(isinstance(text, str | None) for text in found):
                raise DataError(f"{where}: no object with the article in \"text\" or \"maintext\"; mend or remove it")
            # null where the crawler found no text; halves of surrogate pairs have no UTF-8
            yield None, (found[0] or found[-1] or "").encode("utf-8", "replace").decode("utf-8")


def json_records(path: Path) -> Iterator[tuple[str, object]]:
    """(where it stands, record) of JSON lines, or of a file that is one object or a list.

    Raises:
        DataError: no JSON.
    """
    lines = enumerate(utf8_lines(read_compressed(path), str(path)), 1)
    for number, line in lines:
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            if number > 1:
                raise DataError(f"{where}: no JSON ({error}); mend or remove it") from None
            where, record = str(path), whole_json(path, [line, *(rest for _, rest in lines)])
        yield from ((where, one) for one in (record if isinstance(record, list) else [record]))


def whole_json(path: Path, lines: list[str]) -> object:
    try:
        return json.loads("\n".join(lines))
    except ValueError as error:
        raise DataError(f"{path}: neither JSON lines nor JSON ({error}); mend or remove it") from None


class Texts(Files):
    def documents_of(self, path: Path) -> Documents:
        yield from ((None, line) for line in utf8_lines(read_compressed(path), str(path)))


class SplitTexts(Files):
    """A paragraph a line, in a file for each split."""

    def missing(self, folder: Path) -> list[str]:
        return [f"{split}.txt" for split in SPLITS if not (folder / f"{split}.txt").is_file()]

    def found(self, folder: Path) -> bool:
        return not self.missing(folder)

    def documents(self, folder: Path) -> Documents:
        # Of a sentence in two splits, the held-out one stays.
        for split in reversed(SPLITS):
            with (folder / f"{split}.txt").open("rb") as stream:
                yield from ((split, line) for line in utf8_lines(stream, str(folder / f"{split}.txt")))


SPLIT_TEXTS = SplitTexts(tuple(f"{split}.txt" for split in SPLITS))
LAYOUTS = {
    "reuters": [ReutersFolders(("training/*", "test/*")), ReutersSGML(("reut2-*.sgm", "REUT2-*.SGM"))],
    "cc_news": [SPLIT_TEXTS, JSONArticles(tuple(f"*.json{i}{j}" for i in ("l", "") for j in COMPRESSED)),
                Texts(tuple(f"*.txt{ending}" for ending in COMPRESSED))],
    "debian_prose": [SPLIT_TEXTS],
}


# ---- sentences

class Rules(NamedTuple):
    """How articles become lines; the options of the same names. words: whether these are put between spaces."""

    words: bool
    cased: bool
    share: float
    valid: float
    test: float


def lines_of(document: str, rules: Rules) -> tuple[list[str], int]:
    """The sentences of a document as lines of the corpus, and how many are left out."""
    lines, left_out = [], 0
    for sentence in (sentence for paragraph in html.unescape(document).split("\n")
                     for sentence in sentences(clean(paragraph))):
        tokens = TOKEN.findall(sentence)
        words = sum(token[0].isalpha() for token in tokens)
        if words < MIN_WORDS or 2 * words < len(tokens):
            left_out += 1
            continue
        line = " ".join(tokens) if rules.words else sentence
        lines.append(line if rules.cased or not rules.words else line.lower())
    return lines, left_out


def cleaned(document: tuple[str | None, str], rules: Rules) -> tuple[str, list[str], int] | None:
    """The split of a document, its lines and how many are left out; None where it is not of the share."""
    split, text = document
    raw = text.encode()
    if split in (None, "train") and rules.share < 1 and fraction(raw, b"share") >= rules.share:
        return None
    if split is None:
        split = split_of(raw, rules.valid, rules.test)
    return split, *lines_of(text, rules)


def cleaned_chunk(documents: list[tuple[str | None, str]],
                  rules: Rules) -> list[tuple[str, list[str], int] | None]:
    return [cleaned(document, rules) for document in documents]


def chunks(documents: Documents) -> Iterator[list[tuple[str | None, str]]]:
    """The documents in lists, so that a worker is seldom asked."""
    rest = iter(documents)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


class Corpus:
    """The lines of the splits, each kept once: those of training in a file, the others in memory."""

    def __init__(self, train: TextIO):
        self.train = train
        self.held_out: dict[str, list[str]] = {"valid": [], "test": []}
        self.seen: set[int] = set()
        self.counts = dict.fromkeys(("documents", "train", "too short or no text", "repeated", "beyond --held-out"), 0)

    def add(self, split: str, lines: list[str], left_out: int) -> None:
        self.counts["documents"] += 1
        self.counts["too short or no text"] += left_out
        for line in lines:
            mark = int.from_bytes(digest(line.encode()), "little")
            if mark in self.seen:
                self.counts["repeated"] += 1
                continue
            self.seen.add(mark)
            if split == "train":
                self.train.write(line + "\n")
                self.counts["train"] += 1
            else:
                self.held_out[split].append(line)

    def hold_out(self, most: int) -> None:
        """Keep that many lines of the splits that are held out, drawn by their text, in their order."""
        for split, lines in self.held_out.items():
            order = sorted(range(len(lines)), key=lambda i: fraction(lines[i].encode(), b"held out"))
            self.counts["beyond --held-out"] += len(order[most:])
            self.held_out[split] = [lines[i] for i in sorted(order[:most])]


def write_splits(documents: Documents, text: Path, rules: Rules, most: int, workers: int) -> Corpus:
    """Write all splits, that of training last: when that has its name, all are whole.

    Raises:
        DataError: a split has no line.
    """
    text.mkdir(parents=True, exist_ok=True)
    unfinished = text / "train.txt.unfinished"
    with removed_on_error(unfinished), unfinished.open("w", encoding="utf-8") as stream, \
            Workers(workers) as pool:
        corpus = Corpus(stream)
        bar = tqdm(desc="  clean", unit=" documents", leave=False, disable=None)
        for found in pool.stream("clean", partial(cleaned_chunk, rules=rules), chunks(documents)):
            bar.update(len(found))
            for document in found:
                if document is not None:
                    corpus.add(*document)
        bar.close()
        corpus.hold_out(most)
        empty = [split for split in SPLITS
                 if not (corpus.held_out.get(split) or split == "train" and corpus.counts[split])]
        if empty:
            raise DataError(f"no sentence for {', '.join(empty)}: give more text, or larger shares (--valid, --test)")
    write_files(text, {f"{split}.txt": lines for split, lines in corpus.held_out.items()})
    unfinished.replace(text / "train.txt")
    return corpus


def prepare(arguments: argparse.Namespace) -> None:
    """Write the text, unless it is there."""
    text = arguments.out / "text"
    told = ("set", "sentencepiece", "cased", "share", "valid", "test", "held_out")
    made_of = {"folder": str(arguments.folder.resolve()), **{name: getattr(arguments, name) for name in told}}
    check_made_of(text / MADE_OF, made_of, "*.txt")
    if (text / "train.txt").exists():
        print(f"{text}: already there")
        return
    layout = layout_of(arguments.set, arguments.folder, LAYOUTS)
    if absent := layout.absent(arguments.folder):
        progress(f"not found, left out: {', '.join(absent)}")
    test = 0 if arguments.set == "reuters" else arguments.test  # whose articles say which are test
    rules = Rules(not arguments.sentencepiece, arguments.cased, arguments.share, arguments.valid, test)
    corpus = write_splits(layout.documents(arguments.folder), text, rules, arguments.held_out, arguments.workers)
    keep_made_of(text / MADE_OF, made_of)
    for split in SPLITS:
        count = corpus.counts.pop("train") if split == "train" else len(corpus.held_out[split])
        print(f"{text / split}.txt: {count:,} sentences")
    print("  " + ", ".join(f"{count:,} {what}" for what, count in corpus.counts.items()))


def share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("set", choices=LAYOUTS, help="which set")
    add("folder", type=Path, help="where its files are")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the recipe, made when absent")
    add("--vocabulary", type=count(1), default=10000, help="words to keep, or subwords to learn (default: %(default)s)")
    add("--sentencepiece", action="store_true", help="subwords in place of words")
    add("--cased", action="store_true", help="keep capital letters")
    add("--share", type=share, default=1,
        help="take this share of the articles, drawn by their text; where the set says which are held out, of the "
             "others (default: 1)")
    for split in ("valid", "test"):
        add(f"--{split}", type=share, default=0.01, metavar="SHARE",
            help=f"share of the articles that is {split}, drawn by their text, where the set does not say "
                 "(default: %(default)s)")
    add("--held-out", type=count(1), default=2000, metavar="N",
        help="sentences of valid and of test, at most: as many texts are generated (default: %(default)s)")
    add("--workers", type=count(1), default=os.cpu_count() or 1, help="processes (default: all cores)")
    arguments = parser.parse_args()
    prepare(arguments)
    binarise(arguments.out, arguments.vocabulary, None, None, arguments.workers, words=not arguments.sentencepiece)


if __name__ == "__main__":
    sys.exit(run(main))
