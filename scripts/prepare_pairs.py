"""XSum, CNN/DailyMail, Gigaword or QQP as distributors ship them -> {train,valid,test}.{src,tgt}, one text a line.

    python scripts/prepare_pairs.py xsum path/to/xsum --out runs/xsum/text
    python scripts/prepare_pairs.py gigaword path/to/sumdata --out runs/gigaword/text --lowercase

Known layouts: GLGE's (train.src, dev.src, ..., also in org_data/) and that of fairseq's BART examples (train.source,
val.source, ...); for XSum bbc-summary-data/ with its split file; for CNN/DailyMail OpenNMT's train.txt.src, and
cnn/stories/ and dailymail/stories/ with url_lists/; for Gigaword harvardnlp's sumdata. For QQP DiffuSeq's train.jsonl,
..., Quora's quora_duplicate_questions.tsv, or GLUE's train.tsv and dev.tsv, of which duplicates are split here (2,500
for the test, 2,048 for validation, no question in two splits). The sentences of a summary are told apart by [X_SEP],
GLGE's mark, where the distributor tells them apart. Pairs of the training set with an empty side are left out and
counted. Interrupted, the same command continues with the split that is missing.
"""

import argparse
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Tuple

import _environment  # noqa: F401  says what this Python lacks
import _qqp
from _data import (
    DataError,
    check_made_of,
    check_same_length,
    keep_made_of,
    read_utf8,
    removed_on_error,
    run,
    utf8_lines,
)
from tqdm import tqdm

Pairs = Iterator[Tuple[str, str]]
SPLITS = ("train", "valid", "test")
MADE_OF = "prepared.json"
# Marks between the sentences of a summary, in GLGE's, GENIE's and OpenNMT's files; and the one that is written.
SENTENCE_MARKS = re.compile(r"\s*(?:\[X_SEP\]|<S_SEP>|</?t>)\s*")
SENTENCE_MARK = "[X_SEP]"
MARKS = (" ", f" {SENTENCE_MARK} ")  # between the sentences of a source, of a target


class Files(NamedTuple):
    """A layout of parallel files: for each split the names of its source and target file."""

    train: Tuple[str, str]
    valid: Tuple[str, str]
    test: Tuple[str, str]

    def found(self, folder: Path) -> bool:
        return all((folder / name).is_file() for split in self for name in split)

    def missing(self, folder: Path) -> List[str]:
        return [name for split in self for name in split if not (folder / name).is_file()]

    def pairs(self, folder: Path, split: str) -> Pairs:
        """The lines of a split's two files, side by side."""
        source, target = (folder / name for name in getattr(self, split))
        check_same_length(source, target, "fetch them again")
        with source.open("rb") as sources, target.open("rb") as targets:
            yield from zip(utf8_lines(sources, str(source)), utf8_lines(targets, str(target)))


def files(train: str, valid: str, test: str, source: str, target: str) -> Files:
    """Files named {split}{ending of the side}."""
    return Files(*((split + source, split + target) for split in (train, valid, test)))


class XSumArchive:
    """bbc-summary-data/ID.summary and the split file of the XSum repository."""

    SPLIT_FILE = "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"
    NAMES = {"train": "train", "valid": "validation", "test": "test"}

    def found(self, folder: Path) -> bool:
        return not self.missing(folder)

    def missing(self, folder: Path) -> List[str]:
        return [name for name in ("bbc-summary-data", self.SPLIT_FILE) if not (folder / name).exists()]

    def pairs(self, folder: Path, split: str) -> Pairs:
        """(article, first sentence) in the order of the split file."""
        try:
            ids = json.loads(read_utf8(folder / self.SPLIT_FILE))[self.NAMES[split]]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder / self.SPLIT_FILE} is no split file ({error}): fetch it again") from None
        for number in ids:
            path = folder / "bbc-summary-data" / f"{number}.summary"
            if not path.is_file():
                raise DataError(f"{path} is missing, {self.SPLIT_FILE} names it: unpack the archive again")
            parts = re.split(r"\[SN\]([A-Z-]+)\[SN\]", read_utf8(path))
            sections = dict(zip(parts[1::2], parts[2::2]))
            if not {"FIRST-SENTENCE", "RESTBODY"} <= sections.keys():
                raise DataError(f"{path} has no [SN]FIRST-SENTENCE[SN] and [SN]RESTBODY[SN]: unpack the archive again")
            yield sections["RESTBODY"], sections["FIRST-SENTENCE"]


class Stories:
    """cnn/stories/HASH.story, dailymail/stories/HASH.story and url_lists/all_{train,val,test}.txt."""

    LISTS = {"train": "all_train.txt", "valid": "all_val.txt", "test": "all_test.txt"}
    FOLDERS = ("cnn/stories", "dailymail/stories")

    def found(self, folder: Path) -> bool:
        return not self.missing(folder)

    def missing(self, folder: Path) -> List[str]:
        wanted = [*self.FOLDERS, *(f"url_lists/{name}" for name in self.LISTS.values())]
        return [name for name in wanted if not (folder / name).exists()]

    def pairs(self, folder: Path, split: str) -> Pairs:
        """(article, highlights) in the order of the list; a story's name is the SHA-1 of its address."""
        listed = folder / "url_lists" / self.LISTS[split]
        with listed.open("rb") as stream:
            for number, url in enumerate(utf8_lines(stream, str(listed)), 1):
                name = hashlib.sha1(url.strip().encode()).hexdigest() + ".story"
                story = next((folder / f / name for f in self.FOLDERS if (folder / f / name).is_file()), None)
                if story is None:
                    raise DataError(f"{listed}, line {number}: no story {name}: unpack the archives again")
                article, *highlights = read_utf8(story).split("@highlight")
                yield article, SENTENCE_MARK.join(" ".join(text.split()) + " ." for text in highlights)


GLGE = [files("train", "dev", "test", ".src", ".tgt"), files("org_data/train", "org_data/dev", "org_data/test", ".src",
                                                             ".tgt")]
BART = [files("train", "val", "test", ".source", ".target")]
LAYOUTS: Dict[str, list] = {
    "xsum": [*GLGE, *BART, XSumArchive()],
    "cnndm": [*GLGE, *BART, files("train", "val", "test", ".txt.src", ".txt.tgt.tagged"), Stories()],
    "gigaword": [*GLGE, *BART, Files(
        ("train/train.article.txt", "train/train.title.txt"),
        ("train/valid.article.filter.txt", "train/valid.title.filter.txt"), ("Giga/input.txt", "Giga/task1_ref0.txt"))],
    "qqp": [*_qqp.LAYOUTS, *GLGE],
}


def layout_of(name: str, folder: Path, layouts: Dict[str, list] = LAYOUTS):
    """The layout a folder has.

    Raises:
        DataError: it has none; what the nearest one lacks.
    """
    if not folder.is_dir():
        raise DataError(f"no such folder: {folder}")
    for layout in layouts[name]:
        if layout.found(folder):
            return layout
    missing = min((layout.missing(folder) for layout in layouts[name]), key=len)
    raise DataError(f"{folder} has no layout of {name} that is known here (see --help); the nearest one lacks "
                    + ", ".join(missing[:6]))


def write_split(pairs: Pairs, out: Path, split: str, clean: Callable[[str, str], str]) -> str:
    """Write a split's two files, the target last: when that has its name, the split is whole."""
    paths = [out / f"{split}.{side}" for side in ("src", "tgt")]
    if paths[1].exists():
        return "already there"
    unfinished = [path.with_name(path.name + ".unfinished") for path in paths]
    kept = empty = 0
    with removed_on_error(*unfinished), unfinished[0].open("w", encoding="utf-8") as sources, \
            unfinished[1].open("w", encoding="utf-8") as targets:
        for pair in tqdm(pairs, desc=f"  {split}", unit=" pairs", leave=False, disable=None):
            source, target = map(clean, pair, MARKS)
            if split == "train" and not (source and target):
                empty += 1
                continue
            kept += 1
            sources.write(source + "\n")
            targets.write(target + "\n")
        if not kept:
            raise DataError(f"{split} has no pair: fetch the data again")
    for temporary, path in zip(unfinished, paths):
        temporary.replace(path)
    return f"{kept:,} pairs" + (f", {empty:,} with an empty side left out" if empty else "")


def prepare(name: str, folder: Path, out: Path, lowercase: bool) -> Dict[str, str]:
    """Write all splits; what became of each."""
    layout = layout_of(name, folder)
    made_of = {"set": name, "folder": str(folder.resolve()), "lowercase": lowercase}
    check_made_of(out / MADE_OF, made_of, "*.src and *.tgt")
    out.mkdir(parents=True, exist_ok=True)

    def clean(text: str, mark: str) -> str:
        sentences = (" ".join(sentence.split()) for sentence in SENTENCE_MARKS.split(text))
        text = mark.join(filter(None, sentences))
        return text.lower() if lowercase else text

    said = {}
    for split in SPLITS:
        said[split] = write_split(layout.pairs(folder, split), out, split, clean)
        keep_made_of(out / MADE_OF, made_of)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=LAYOUTS, help="which set")
    parser.add_argument("folder", type=Path, help="where its files are")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="made when absent")
    parser.add_argument("--lowercase", action="store_true", help="as the papers' uncased word pieces do")
    arguments = parser.parse_args()
    for split, said in prepare(arguments.set, arguments.folder, arguments.out, arguments.lowercase).items():
        print(f"{arguments.out / split}.src, .tgt: {said}")


if __name__ == "__main__":
    sys.exit(run(main))
