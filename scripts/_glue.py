"""GLUE's tasks in their distributors' files, and the sections of debsum in the same form. Standard library only."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from _data import DataError, check_same_length, utf8_lines

EPOCHS = 10  # of fine-tuning ("Democratized Diffusion Language Model", section 4.2)
EOS = 2  # index of the end of a sentence in every dictionary of fairseq
# What fairseq's criterion is asked for, beside the accuracy that it always logs.
REPORT = {"accuracy": (), "mcc": ("--report-mcc",), "acc_and_f1": ("--report-acc-and-f1",),
          "pearson_and_spearman": ("--report-pearson-and-spearman",)}
TESTS = ("test", "test1")  # splits without labels: those are on a server
HIGHEST = 5.0  # of the scores of a task that has scores in the place of labels; the lowest is 0


class Example(NamedTuple):
    """A text or two, and their label; None in a test set."""

    texts: tuple[str, ...]
    label: str | None


@dataclass(frozen=True)
class Labelled:
    """A task: its labels, in the order of their numbers (none where it has scores), what validation maximises, and how
    long it is trained."""

    labels: tuple[str, ...]
    inputs: int
    metric: str = "accuracy"
    epochs: int = EPOCHS

    def files(self, split: str) -> list[str]:
        """The names of a split's files; none where the task has no such split."""
        raise NotImplementedError

    def examples(self, folder: Path, split: str) -> Iterator[tuple[str, Example | None]]:
        """(where it stands, example) of a split; None for a line that is broken."""
        raise NotImplementedError

    def knows(self, label: str) -> bool:
        """Whether a label is one of the task's."""
        if self.labels:
            return label in self.labels
        try:
            return 0 <= float(label) <= HIGHEST
        except ValueError:
            return False

    def options(self) -> list[str]:
        """fairseq-train's options for the task."""
        pair = ["--separator-token", str(EOS)] if self.inputs == 2 else []
        scores = [] if self.labels else ["--regression-target"]
        return ["--task", "sentence_prediction", "--criterion", "sentence_prediction", "--num-classes",
                str(len(self.labels) or 1), *scores, *pair, *REPORT[self.metric], "--best-checkpoint-metric",
                self.metric, "--maximize-best-checkpoint-metric", "--max-epoch", str(self.epochs)]


class Columns(NamedTuple):
    """The columns that a task takes from a table; header: their names where a file with labels has none."""

    texts: tuple[str, ...]
    label: str = "label"
    header: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table(Labelled):
    """Files of lines with tabs between their fields, where a quotation mark is a letter like others."""

    columns: Columns = Columns(("sentence",))
    valid: tuple[str, ...] = ("dev.tsv",)
    test: tuple[str, ...] = ("test.tsv",)

    def files(self, split: str) -> list[str]:
        named = {"train": "train.tsv", **dict(zip(("valid", "valid1"), self.valid)), **dict(zip(TESTS, self.test))}
        return [named[split]] if split in named else []

    def examples(self, folder: Path, split: str) -> Iterator[tuple[str, Example | None]]:
        path, labelled = folder / self.files(split)[0], split not in TESTS
        with path.open("rb") as stream:
            rows = enumerate((line.rstrip("\r").split("\t") for line in utf8_lines(stream, str(path))), 1)
            header = labelled and self.columns.header or [name.strip("\ufeff ") for name in next(rows, (1, []))[1]]
            wanted = (*self.columns.texts, *([self.columns.label] if labelled else []))
            if missing := [name for name in wanted if name not in header]:
                raise DataError(f"{path}, line 1: no column {', '.join(missing)}; it is not that of the distributor, "
                                "fetch it again")
            places = [list(header).index(name) for name in wanted]
            for number, row in rows:
                found = None
                if len(row) == len(header):
                    cells = [row[place] for place in places]
                    label = cells.pop() if labelled else None
                    if label is None or self.knows(label):
                        found = Example(tuple(cells), label)
                yield f"{path}, line {number}", found


@dataclass(frozen=True)
class Sections(Labelled):
    """The descriptions of debsum and the sections of their packages; those of other sections are no examples."""

    def files(self, split: str) -> list[str]:
        return [f"{split}.src", f"{split}.id"] if split in ("train", "valid") else []

    def examples(self, folder: Path, split: str) -> Iterator[tuple[str, Example | None]]:
        texts, marks = (folder / name for name in self.files(split))
        check_same_length(texts, marks, "prepare debsum again")
        with texts.open("rb") as descriptions, marks.open("rb") as stream:
            rows = zip(utf8_lines(descriptions, str(texts)), utf8_lines(stream, str(marks)))
            for number, (text, mark) in enumerate(rows, 1):
                fields = mark.split("\t")
                label = fields[2].rpartition("/")[2] if len(fields) == 4 else None
                if label is None or label in self.labels:
                    yield f"{marks}, line {number}", None if label is None else Example((text,), label)


ZERO_ONE, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
TASKS: dict[str, Labelled] = {
    "CoLA": Table(ZERO_ONE, 1, "mcc", columns=Columns(("sentence",), header=("source", "label", "mark", "sentence"))),
    "SST-2": Table(ZERO_ONE, 1),
    "MRPC": Table(ZERO_ONE, 2, "acc_and_f1", columns=Columns(("#1 String", "#2 String"), "Quality")),
    "QQP": Table(ZERO_ONE, 2, "acc_and_f1", columns=Columns(("question1", "question2"), "is_duplicate")),
    "STS-B": Table((), 2, "pearson_and_spearman", columns=Columns(("sentence1", "sentence2"), "score")),
    "MNLI": Table(("contradiction", "entailment", "neutral"), 2, valid=("dev_matched.tsv", "dev_mismatched.tsv"),
                  test=("test_matched.tsv", "test_mismatched.tsv"),
                  columns=Columns(("sentence1", "sentence2"), "gold_label")),
    "QNLI": Table(ENTAILMENT, 2, columns=Columns(("question", "sentence"))),
    "RTE": Table(ENTAILMENT, 2, epochs=20, columns=Columns(("sentence1", "sentence2"))),
    "debsection": Sections(("admin", "devel", "gnu-r", "java", "javascript", "libs", "net", "perl", "python", "ruby",
                            "science", "utils"), 1),
}
