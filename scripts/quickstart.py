"""Prepare, binarise, train, generate, score: a small GENIE on real text, with every command shown.

    bash scripts/quickstart.sh                        # King James verses -> World English Bible verses
    bash scripts/quickstart.sh --data debsum          # package descriptions -> one-line synopses
    bash scripts/quickstart.sh --minutes 60           # trains longer; continues what an earlier run has trained

Run twice it reuses what is there; interrupted it continues where it was.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Dict, List, NamedTuple

import _environment  # noqa: F401  says what this Python lacks
import torch
from _commands import REPOSITORY, USER_DIR, CommandFailed, fairseq, flat, run
from fairseq import checkpoint_utils
from tqdm import tqdm

import diffusion_fairseq  # noqa: F401  lets checkpoints be read safely


class Recipe(NamedTuple):
    """What differs between data sets."""

    prepare: List[str]
    vocabulary: int
    train: Dict[str, str]
    task: Dict[str, str]


RECIPES = {
    "kjvweb": Recipe(
        prepare=["prepare_kjvweb.py", "--max-words", "14"], vocabulary=4000,
        task={"--max-source-positions": "64", "--max-target-positions": "64"},
        train={"--batch-size": "64"},
    ),
    "debsum": Recipe(
        prepare=["prepare_debsum.py"], vocabulary=8000,
        task={"--max-source-positions": "192", "--max-target-positions": "40"},
        train={"--max-tokens": "6000"},
    ),
}
# Small data and a short run: a small model, a high learning rate, weights averaged over the last updates.
TRAIN = {
    "--arch": "genie_small", "--criterion": "diffusion_vlb", "--optimizer": "adam", "--adam-betas": "(0.9, 0.98)",
    "--lr": "4e-3", "--lr-scheduler": "inverse_sqrt", "--warmup-updates": "100", "--clip-norm": "1.0",
    "--weight-decay": "0.01", "--seed": "1", "--ema-decay": "0.99", "--log-format": "json", "--log-interval": "10",
    "--save-interval-updates": "100", "--keep-interval-updates": "1", "--num-workers": "0",
}
TRAIN_FLAGS = ["--store-ema", "--ema-fp32", "--share-embeddings", "--copy-source", "--no-epoch-checkpoints",
               "--disable-validation"]
GENERATE = {"--diffusion-steps": "20", "--batch-size": "128", "--scoring": "rouge"}
GENERATE_FLAGS = ["--clamping"]


def show(step: str) -> None:
    print(f"\n[quickstart] {step}", flush=True)


def command(name: str, *arguments: str) -> List[str]:
    """A fairseq command of this environment, shown as a user would type it."""
    print("  $ " + shlex.join([name, *arguments]), flush=True)
    return fairseq(name, *arguments)


def prepare(recipe: Recipe, work: Path) -> Path:
    """Raw text, one sentence a line, in work/text."""
    text = work / "text"
    show("1/6 prepare the text")
    script, *options = recipe.prepare
    subprocess.run([sys.executable, REPOSITORY / "scripts" / script, *options, "--out", text], check=True)
    return text


def binarise(recipe: Recipe, work: Path) -> Path:
    """A sentencepiece model, encoded text, and fairseq's binary data in work/data-bin."""
    show("2/6 learn subwords and binarise")
    subprocess.run([sys.executable, REPOSITORY / "scripts/binarise.py", work, "--vocabulary", str(recipe.vocabulary)],
                   check=True)
    return work / "data-bin"


def device_flags() -> List[str]:
    return [] if torch.cuda.is_available() else ["--cpu"]


def training_command(recipe: Recipe, binary: Path, folder: Path, *more: str) -> List[str]:
    return command("fairseq-train", str(binary), "--user-dir", str(USER_DIR),
                   "--task", "seq2seq_diffusion", *flat(recipe.task), *flat(TRAIN), *flat(recipe.train), *TRAIN_FLAGS,
                   "--save-dir", str(folder), *device_flags(), *more)


def train(recipe: Recipe, binary: Path, work: Path, minutes: float) -> Path:
    """Train until `minutes` have been spent on it in all runs together; returns the averaged weights."""
    show(f"4/6 train for {minutes:g} minutes")
    folder, log = work / "checkpoints", work / "train.log"
    averaged, spent = folder / "averaged.pt", folder / "minutes.json"
    if averaged.exists() and spent.exists() and json.loads(spent.read_text()) >= minutes:
        print(f"  already trained: {averaged}")
        return averaged
    words = training_command(recipe, binary, folder, "--stop-time-hours", str(minutes / 60))
    form = "  {l_bar}{bar}| {n:.0f}/{total} s, {remaining} left{postfix}"
    before = trained_seconds(folder)
    with tqdm(total=round(minutes * 60), initial=before, unit="s", bar_format=form) as bar:
        run(words, log, partial(follow_training, bar, before), mode="a")
    run([sys.executable, str(REPOSITORY / "scripts/export_checkpoint.py"), "--ema",
         str(folder / "checkpoint_last.pt"), "--output", str(averaged)], work / "export.log")
    spent.write_text(json.dumps(minutes))
    return averaged


def trained_seconds(folder: Path) -> float:
    """How long the training that will be continued has taken so far."""
    last = folder / "checkpoint_last.pt"
    if not last.exists():
        return 0.0
    return checkpoint_utils.load_checkpoint_to_cpu(str(last))["extra_state"].get("previous_training_time", 0.0)


def follow_training(bar: tqdm, before: float, line: str) -> None:
    """Move the bar to where a line of fairseq's log, whose clock begins after `before` seconds, says training is."""
    _, found, record = line.partition("| train_inner | ")
    if not found:
        return
    record = json.loads(record)
    bar.n = min(before + float(record["wall"]), bar.total)
    bar.set_postfix(update=record["num_updates"], mse=record["mse"])


def untrained(recipe: Recipe, binary: Path, work: Path) -> Path:
    """The same model before it has learned anything."""
    show("3/6 make the untrained model, to compare with")
    checkpoint = work / "untrained" / "checkpoint_last.pt"
    if checkpoint.exists():
        print(f"  already there: {checkpoint}")
    else:
        run(training_command(recipe, binary, checkpoint.parent, "--max-update", "1", "--lr", "1e-20"),
            work / "untrained.log")
    return checkpoint


def generate(recipe: Recipe, binary: Path, work: Path, checkpoint: Path, output: Path) -> Path:
    """The test set's hypotheses, as fairseq-generate prints them."""
    if output.exists() and output.stat().st_mtime > checkpoint.stat().st_mtime:
        print(f"  already there: {output}")
        return output
    unfinished = output.with_suffix(".partial")
    words = command("fairseq-generate", str(binary), "--user-dir", str(USER_DIR),
                    "--task", "seq2seq_diffusion", *flat(recipe.task), "--path", str(checkpoint), "--gen-subset",
                    "test", "--bpe", "sentencepiece", "--sentencepiece-model", str(work / "sentencepiece.model"),
                    *flat(GENERATE), *GENERATE_FLAGS, *device_flags())
    total = sum(1 for _ in open(work / "text" / "test.src", encoding="utf-8"))
    with tqdm(total=total, desc=f"  {output.stem}", unit=" sentences") as bar:
        run(words, unfinished, lambda line: bar.update(line.startswith("H-")))
    return unfinished.rename(output)


def report(text: Path, work: Path, trained: Path, before: Path) -> None:
    """The table, the plot and the examples."""
    show("6/6 score")
    scripts = REPOSITORY / "scripts"
    subprocess.run([sys.executable, scripts / "evaluate.py", trained, "--name", "trained", "--system",
                    f"untrained={before}", "--train-target", text / "train.tgt", "--examples", "10",
                    "--references", text / "test.tgt", "--sources", text / "test.src", "--json", work / "scores.json"],
                   check=True)
    subprocess.run([sys.executable, scripts / "plot_losses.py", work / "train.log", "--output", work / "losses.png"],
                   check=True)


def next_commands(recipe: Recipe, binary: Path, work: Path, checkpoint: Path) -> None:
    show("next: type a sentence and watch it being denoised")
    options = ["--path", str(checkpoint), "--user-dir", "diffusion_fairseq", "--task", "seq2seq_diffusion",
               "--bpe", "sentencepiece", "--sentencepiece-model", str(work / "sentencepiece.model")]
    print("  $ " + shlex.join(["fairseq-interactive", str(binary), *options, "--diffusion-steps", "50", "--clamping"]))
    print("  ten candidates a sentence, the three likeliest printed:")
    print("  $ " + shlex.join(["fairseq-generate", str(binary), *options, "--candidates", "10", "--nbest", "3"]))
    print("  every step of the denoising (E- lines):")
    print("  $ " + shlex.join(["fairseq-generate", str(binary), *options, "--retain-iter-history"]))
    print(f"  train on: bash scripts/quickstart.sh --minutes 60     (environment: source "
          f"{Path(sys.executable).parent / 'activate'})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=RECIPES, default="kjvweb", help="data set (default: kjvweb)")
    parser.add_argument("--minutes", type=float, default=8.0, help="training time in all runs together (default: 8)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="work folder (default: runs/quickstart-DATA)")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error("--minutes must be positive")
    started = time.time()
    recipe = RECIPES[arguments.data]
    work = (arguments.out or REPOSITORY / "runs" / f"quickstart-{arguments.data}").resolve()
    work.mkdir(parents=True, exist_ok=True)
    text = prepare(recipe, work)
    binary = binarise(recipe, work)
    before = untrained(recipe, binary, work)
    checkpoint = train(recipe, binary, work, arguments.minutes)
    show("5/6 generate the test set, trained and untrained")
    outputs = [generate(recipe, binary, work, path, work / f"{name}.txt")
               for name, path in (("generated", checkpoint), ("generated-untrained", before))]
    report(text, work, *outputs)
    next_commands(recipe, binary, work, checkpoint)
    show(f"all of it took {time.time() - started:.0f} s; results are in {os.path.relpath(work)}")


if __name__ == "__main__":
    try:
        main()
    except (CommandFailed, OSError) as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)  # the script that failed has said why
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")
