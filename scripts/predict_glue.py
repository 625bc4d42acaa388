#!/usr/bin/env python3
"""What fine-tuned classifiers say of GLUE's test sets -> the files that its server takes.

    python scripts/predict_glue.py runs/glue --checkpoint RTE=runs/glue/RTE/checkpoints/checkpoint_best.pt \\
        --checkpoint MNLI=runs/glue/MNLI/checkpoints/checkpoint_best.pt --output runs/glue/submission --device cuda

The first folder is one that scripts/prepare_glue.py made of files among which test.tsv was; the checkpoints are those
of examples/glue/train.sh. Writes TASK.tsv into --output, of MNLI both MNLI-m.tsv and MNLI-mm.tsv: index and prediction
of every line of the test set, in its order, under a header. A prediction is a label in the words of the task's files,
for STS-B a score from 0 to 5. It depends on its text alone, not on --batch-size.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import List, Tuple

import _environment  # noqa: F401  says what this Python lacks
import torch
from _data import write_files
from _glue import HIGHEST, TASKS, TESTS
from _lm_scorer import check_device
from _option_types import count, named
from fairseq import checkpoint_utils
from tqdm import tqdm

import diffusion_fairseq  # noqa: F401  registers the models
from diffusion_fairseq.errors import UserError

# The files of a task, one a test set.
SUBMITTED = {name: ("MNLI-m", "MNLI-mm") if name == "MNLI" else (name,)
             for name, task in TASKS.items() if task.files("test")}
_read = named("TASK=FILE", Path, "RTE=checkpoint_best.pt")


def checkpoint(text: str) -> Tuple[str, Path]:
    name, file = _read(text)
    if name not in SUBMITTED:
        raise argparse.ArgumentTypeError(f"{name!r} is no task of the server: choose among {', '.join(SUBMITTED)}")
    return name, file


def check_prepared(work: Path, name: str) -> None:
    """Refuse a folder that has no test set of a task.

    Raises:
        UserError: it lacks one.
    """
    tests = TESTS[: len(SUBMITTED[name])]
    if any(not (work / name / "input0" / f"{split}.idx").is_file() for split in tests):
        files = " and ".join(file for split in tests for file in TASKS[name].files(split))
        raise UserError(f"{work / name} has no test set: put {files} beside train.tsv, and prepare the task with "
                        "scripts/prepare_glue.py in a new folder")


def load(file: Path, name: str, work: Path):
    """A checkpoint's task, on the data of work/name, and its model.

    Raises:
        UserError: the file cannot be read, or is of another task.
    """
    state = checkpoint_utils.load_checkpoint_to_cpu(str(file))
    settings = (state.get("cfg") or {}).get("task") or {}
    # A task's data lie in a folder of its name, wherever that was.
    trained_on = Path(settings.get("data") or "").name
    if settings.get("_name") != "sentence_prediction" or trained_on != name:
        of = trained_on if settings.get("_name") == "sentence_prediction" else f"--task {settings.get('_name')}"
        raise UserError(f"{file} is a checkpoint of {of}, not of {name}: give one that examples/glue/train.sh {name} "
                        "has made")
    settings["data"] = str(work / name)
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(file)], state=state)
    return task, model.eval()


def spell(task, scores: torch.Tensor) -> List[str]:
    """What the server takes for the scores (B, classes) of texts."""
    if task.cfg.regression_target:
        return [f"{score:.3f}" for score in scores.view(-1).clamp(0, HIGHEST).tolist()]
    labels = task.label_dictionary
    return [labels[labels.nspecial + best] for best in scores.argmax(dim=1).tolist()]


def predict(task, model: torch.nn.Module, split: str, batch_size: int, device: str) -> List[str]:
    """A prediction for every text of a split, in the order of its file."""
    task.load_dataset(split)
    texts = task.dataset(split)
    order = sorted(range(len(texts)), key=texts.num_tokens, reverse=True)  # what needs the most memory comes first
    found = [""] * len(order)
    for first in tqdm(range(0, len(order), batch_size), unit=" batches", disable=None):
        batch = texts.collater([texts[row] for row in order[first : first + batch_size]])
        words = {key: value.to(device) for key, value in batch["net_input"].items()}
        with torch.inference_mode():
            scores, _ = model(**words, features_only=True, classification_head_name=task.cfg.classification_head_name)
        for row, said in zip(batch["id"].tolist(), spell(task, scores.float())):
            found[row] = said
    return found


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="DIR", help="folder with a folder a task, by prepare_glue.py")
    parser.add_argument("--checkpoint", type=checkpoint, action="append", required=True, metavar="TASK=FILE",
                        help="a classifier of a task; repeatable")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="made when absent")
    parser.add_argument("--batch-size", type=count(1), default=64, help="texts at once (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="such as cuda (default: %(default)s)")
    arguments = parser.parse_args()
    if len(dict(arguments.checkpoint)) < len(arguments.checkpoint):
        parser.error("two --checkpoint options are of the same task")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.disable(logging.INFO)  # of fairseq; warnings stay
    check_device(arguments.device)
    for name, _ in arguments.checkpoint:
        check_prepared(arguments.work, name)
    for name, file in arguments.checkpoint:
        task, model = load(file, name, arguments.work)
        model.to(arguments.device)
        for split, submitted in zip(TESTS, SUBMITTED[name]):
            found = predict(task, model, split, arguments.batch_size, arguments.device)
            write_files(arguments.output, {f"{submitted}.tsv": [
                "index\tprediction", *(f"{index}\t{said}" for index, said in enumerate(found))]})
            print(f"{arguments.output / submitted}.tsv: {len(found):,} predictions")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
