"""GLUE as it is distributed -> the binarised data of fairseq's sentence_prediction.

    python scripts/prepare_glue.py path/to/glue_data --out runs/glue --sentencepiece-model pre/sentencepiece.model \\
        --dictionary pre/dict.txt

The first folder holds CoLA/, SST-2/, MRPC/, QQP/, STS-B/, MNLI/, QNLI/ and RTE/, each with train.tsv and dev.tsv
(MNLI: dev_matched.tsv, which becomes valid, and dev_mismatched.tsv, valid1), and with test.tsv (test_matched.tsv and
test_mismatched.tsv) for scripts/predict_glue.py, where it is there; and debsection/, made by prepare_debsum.py: the
description of a package -> its section, one of the twelve largest. Tasks that are not there are named and left out.
Texts are encoded with the subwords and the dictionary of the pre-training.

Writes TASK/input0, input1 and label of each task into --out, with TASK/options.txt, the options of fairseq-train that
belong to the task, and TASK/task.json, the counts. Lines with another number of fields than the first one, or with an
unknown label, are left out, and the first ones named; a test set with such a line is refused, since the server wants
an answer to each. Interrupted, the same command continues with the tasks that are missing.
"""

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from pathlib import Path

import _environment  # noqa: F401  says what this Python lacks
import sentencepiece
from _data import DataError, check_made_of, keep_made_of, progress, run, sha256, write_files
from _glue import HIGHEST, TASKS, TESTS, Example, Labelled
from _option_types import count
from binarise import encode, encoder_of, fairseq_preprocess
from prepare_pairs import MADE_OF

LABELLED = ("train", "valid", "valid1")
MOST_BROKEN = 0.01  # share of a file's lines; with more it is another file
SHOWN = 3  # broken lines that are named


def read(task: Labelled, folder: Path, split: str) -> list[Example]:
    """The examples of a split.

    Raises:
        DataError: too many lines are broken, of a test set one, or none is left.
    """
    examples, broken = [], []
    for where, found in task.examples(folder, split):
        if found is None:
            broken.append(where)
        else:
            examples.append(Example(tuple(" ".join(text.split()) for text in found.texts), found.label))
    count = len(examples) + len(broken)
    if len(broken) > (0 if split in TESTS else MOST_BROKEN) * count or not examples:
        where = f" (the first: {broken[0]})" if broken else ""
        labels = ', '.join(task.labels) or f"a number from 0 to {HIGHEST:g}"
        label = "" if split in TESTS else f", or a label other than {labels}"
        raise DataError(f"{folder / task.files(split)[0]}: {len(broken):,} of {count:,} lines have not the fields of "
                        f"the first one{label}{where}; fetch it again")
    for where in broken[:SHOWN]:
        progress(f"left out: {where}: not as many fields as the first line, or an unknown label")
    if len(broken) > SHOWN:
        progress(f"left out: {len(broken) - SHOWN:,} more such lines of {folder / task.files(split)[0]}")
    return examples


def splits_of(task: Labelled, folder: Path) -> list[str]:
    """The splits of a task, with those of the test where the folder has all of them."""
    tests = [split for split in TESTS if task.files(split)]
    there = all((folder / task.files(split)[0]).is_file() for split in tests)
    return [*(split for split in LABELLED if task.files(split)), *(tests if there else ())]


def binarise_task(task: Labelled, folder: Path, splits: list[str], encoder: sentencepiece.SentencePieceProcessor,
                  dictionary: Path, workers: int) -> None:
    """What fairseq reads of folder/text: folder/input0, input1 and label."""
    text, encoded = folder / "text", folder / "encoded"
    encoded.mkdir()

    def preprocess(part: str, source: Path, words: Path, of: list[str]) -> None:
        files = {kind: ",".join(str(source / f"{split}.{part}") for split in of if split.rstrip("1") == kind)
                 for kind in ("train", "valid", "test")}
        given = [word for kind, names in files.items() if names for word in (f"--{kind}pref", names)]
        fairseq_preprocess(folder / part, ["--only-source", "--srcdict", str(words), *given, "--workers",
                                           str(workers)], folder / f"{part}.log")

    for part in (f"input{i}" for i in range(task.inputs)):
        for split in splits:
            encode(encoder, text / f"{split}.{part}", encoded / f"{split}.{part}", workers)
        preprocess(part, encoded, dictionary, splits)
    labelled = [split for split in splits if split not in TESTS]
    if task.labels:
        # Numbers that do not depend on how frequent a label is.
        write_files(encoded, {"labels.txt": [f"{label} 1" for label in task.labels]})
        preprocess("label", text, encoded / "labels.txt", labelled)
    else:
        (folder / "label").mkdir()
        for split in labelled:  # fairseq reads scores as they are
            shutil.copyfile(text / f"{split}.label", folder / "label" / f"{split}.label")
    shutil.rmtree(encoded)


def write_task(name: str, folder: Path, out: Path, encoder: sentencepiece.SentencePieceProcessor, dictionary: Path,
               workers: int) -> str:
    """Write out/name, which gets its name when it is whole; returns what became of it."""
    task, unfinished = TASKS[name], out / f"{name}.unfinished"
    if (out / name).exists():
        lacks = "test" in splits_of(task, folder) and not (out / name / "input0/test.idx").exists()
        return "already there" + (", without its test set: remove it, or name another --out" if lacks else "")
    shutil.rmtree(unfinished, ignore_errors=True)
    splits = {split: read(task, folder, split) for split in splits_of(task, folder)}
    for split, examples in splits.items():
        columns = {f"input{i}": list(column) for i, column in enumerate(zip(*(one.texts for one in examples)))}
        if split not in TESTS:
            columns["label"] = [one.label for one in examples]
        write_files(unfinished / "text", {f"{split}.{part}": column for part, column in columns.items()})
    binarise_task(task, unfinished, list(splits), encoder, dictionary, workers)
    facts = {"metric": task.metric, "examples": {split: len(examples) for split, examples in splits.items()},
             "most frequent label": most_frequent(splits) if task.labels else None}
    write_files(unfinished, {"options.txt": [" ".join(task.options())],
                             "task.json": json.dumps(facts, indent=1).split("\n")})
    unfinished.replace(out / name)
    return ", ".join(f"{len(examples):,} {split}" for split, examples in splits.items())


def most_frequent(splits: dict[str, list[Example]]) -> float:
    """The accuracy in percent, in validation, of the label that is the most frequent one in training."""
    label = Counter(example.label for example in splits["train"]).most_common(1)[0][0]
    return 100 * sum(example.label == label for example in splits["valid"]) / len(splits["valid"])


def present(folder: Path, wanted: list[str] | None) -> list[str]:
    """The tasks that a folder holds, of those that are wanted; the others are reported.

    Raises:
        DataError: one that was asked for is not there, or there is none.
    """
    lacking = {}
    for name in wanted or TASKS:
        files = [file for split in LABELLED for file in TASKS[name].files(split)]
        if missing := [file for file in files if not (folder / name / file).is_file()]:
            lacking[name] = f"{name} lacks {', '.join(missing)}"
    found = [name for name in wanted or TASKS if name not in lacking]
    if not found or wanted and lacking:
        raise DataError(f"{folder}: {'; '.join(lacking.values())}: fetch the files, or name the tasks that are there "
                        "with --tasks")
    for said in lacking.values():
        progress(f"left out: {said}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, help="where the tasks' folders are")
    add("--out", type=Path, required=True, metavar="DIR", help="made when absent")
    add("--sentencepiece-model", type=Path, required=True, metavar="FILE", help="that of the pre-training")
    add("--dictionary", type=Path, required=True, metavar="FILE", help="dict.txt of the pre-training")
    add("--tasks", type=lambda text: text.split(","), metavar="NAME,...", help=f"of {', '.join(TASKS)} (default: those "
        "that are there)")
    add("--workers", type=count(1), default=os.cpu_count() or 1, help="processes (default: all cores)")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.tasks or () if name not in TASKS]:
        parser.error(f"--tasks {','.join(unknown)} is unknown: choose of {', '.join(TASKS)}")
    if not arguments.folder.is_dir():
        raise DataError(f"no such folder: {arguments.folder}")
    if not arguments.dictionary.is_file():
        raise DataError(f"no dictionary {arguments.dictionary}: name dict.txt of the data of the pre-training")
    names = present(arguments.folder, arguments.tasks)
    encoder = encoder_of(arguments.folder, (), arguments.out, 0, arguments.sentencepiece_model)
    made_of = {"subwords": sha256(arguments.sentencepiece_model), "dictionary": sha256(arguments.dictionary)}
    check_made_of(arguments.out / MADE_OF, made_of, "the tasks' folders")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        said = write_task(name, arguments.folder / name, arguments.out, encoder, arguments.dictionary,
                          arguments.workers)
        keep_made_of(arguments.out / MADE_OF, made_of)
        print(f"{arguments.out / name}: {said}")


if __name__ == "__main__":
    sys.exit(run(main))
