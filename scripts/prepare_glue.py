"""GLUE as it is distributed -> the binarised data of fairseq's sentence_prediction.

    python scripts/prepare_glue.py path/to/glue_data --out runs/glue --sentencepiece-model pre/sentencepiece.model \\
        --dictionary pre/dict.txt

The first folder holds CoLA/, SST-2/, MRPC/, QQP/, MNLI/, QNLI/ and RTE/, each with train.tsv and dev.tsv (MNLI:
dev_matched.tsv, which becomes valid, and dev_mismatched.tsv, valid1); and debsection/, made by prepare_debsum.py: the
description of a package -> its section, one of the twelve largest. Tasks that are not there are named and left out.
Texts are encoded with the subwords and the dictionary of the pre-training.

Writes TASK/input0, input1 and label of each task into --out, with TASK/options.txt, the options of fairseq-train that
belong to the task, and TASK/task.json, the counts. Lines with another number of fields than the first one, or with an
unknown label, are left out, and the first ones named. Interrupted, the same command continues with the tasks that are
missing.
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
from _glue import TASKS, Example, Labelled
from _option_types import count
from binarise import encode, encoder_of, fairseq_preprocess
from prepare_pairs import MADE_OF

SPLITS = ("train", "valid", "valid1")
MOST_BROKEN = 0.01  # share of a file's lines; with more it is another file
SHOWN = 3  # broken lines that are named


def read(task: Labelled, folder: Path, split: str) -> list[Example]:
    """The examples of a split.

    Raises:
        DataError: too many lines are broken, or none is left.
    """
    examples, broken = [], []
    for where, found in task.examples(folder, split):
        if found is None:
            broken.append(where)
        else:
            examples.append(Example(tuple(" ".join(text.split()) for text in found.texts), found.label))
    count = len(examples) + len(broken)
    if len(broken) > MOST_BROKEN * count or not examples:
        where = f" (the first: {broken[0]})" if broken else ""
        raise DataError(f"{folder / task.files(split)[0]}: {len(broken):,} of {count:,} lines have not the fields of "
                        f"the first one, or a label other than {', '.join(task.labels)}{where}; fetch it again")
    for where in broken[:SHOWN]:
        progress(f"left out: {where}: not as many fields as the first line, or an unknown label")
    if len(broken) > SHOWN:
        progress(f"left out: {len(broken) - SHOWN:,} more such lines of {folder / task.files(split)[0]}")
    return examples


def write_task(name: str, folder: Path, out: Path, encoder: sentencepiece.SentencePieceProcessor, dictionary: Path,
               workers: int) -> str:
    """Write out/name, which gets its name when it is whole; returns what became of it."""
    if (out / name).exists():
        return "already there"
    task, unfinished = TASKS[name], out / f"{name}.unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    splits = {split: read(task, folder, split) for split in SPLITS if task.files(split)}
    parts = [*(f"input{i}" for i in range(task.inputs)), "label"]
    text, encoded = unfinished / "text", unfinished / "encoded"
    for split, examples in splits.items():
        columns = [*zip(*(example.texts for example in examples)), [example.label for example in examples]]
        write_files(text, {f"{split}.{part}": list(column) for part, column in zip(parts, columns)})
    encoded.mkdir()
    for part in parts:
        if part == "label":
            # Numbers that do not depend on how frequent a label is.
            source, words = text, encoded / "labels.txt"
            write_files(encoded, {words.name: [f"{label} 1" for label in task.labels]})
        else:
            source, words = encoded, dictionary
            for split in splits:
                encode(encoder, text / f"{split}.{part}", encoded / f"{split}.{part}", workers)
        held_out = ",".join(str(source / f"{split}.{part}") for split in splits if split != "train")
        fairseq_preprocess(unfinished / part, ["--only-source", "--srcdict", str(words), "--trainpref",
                                               str(source / f"train.{part}"), "--validpref", held_out, "--workers",
                                               str(workers)], unfinished / f"{part}.log")
    shutil.rmtree(encoded)
    facts = {"metric": task.metric, "examples": {split: len(examples) for split, examples in splits.items()},
             "most frequent label": most_frequent(splits)}
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
        files = [file for split in SPLITS for file in TASKS[name].files(split)]
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
