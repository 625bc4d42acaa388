"""Quality after fine-tuning against updates of pre-training, with as much fine-tuning for each: table and curves.

    python scripts/study_pretraining.py runs/debsum --checkpoint 2000=ck/checkpoint_1_2000.pt \\
        --checkpoint 8000=ck/checkpoint_4_8000.pt --seeds 3 --output runs/study -- \\
        --arch genie_small --share-embeddings --criterion diffusion_vlb --optimizer adam --lr 1e-3 --max-update 4000

GENIE's table 5, best of 5 by the reference: --candidates 5 --oracle rouge2.

The first folder is one that scripts/binarise.py made, with the subwords and the dictionary of the pre-training. What
stands after -- goes to every fairseq-train; 0 updates (no pre-training) are always among the starts. Writes
study.json, study.txt and study.png into --output. Interrupted, it goes on where it was, in the middle of a training.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import _environment  # noqa: F401  says what this Python lacks
from _data import sha256
from _evaluation import DEFAULT_ORACLE, evaluate
from _generated import read_generated, read_lines
from _option_types import count
from _study import (
    add_study_options,
    content_of,
    forget_others,
    generate,
    keep_options,
    measure,
    options_of,
    parse_study,
    prepare_output,
    report,
    run_study,
    train,
)
from plot_losses import read_series
from study_candidates import OFFERED

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics.report import text_table

TASK, MODEL = "seq2seq_diffusion", "model"
MEASURES = ("rouge1", "rouge2", "rougeL", "bleu")
SCORING = ("subset", "bpe_model", "steps", "candidates", "oracle")
CURVES = {"rouge_l": "ROUGE-L of the validation set's first sentences", "mse": "validation mse"}


class Start(NamedTuple):
    """Where fine-tuning starts: after so many updates of pre-training, from a file (None: random weights)."""

    updates: int
    file: Optional[Path]


def start(text: str) -> Start:
    updates, equals, file = text.partition("=")
    if not (equals and file and updates.isdigit() and int(updates)):
        raise argparse.ArgumentTypeError(f"{text!r} is not UPDATES=FILE, such as 2000=checkpoint_1_2000.pt")
    return Start(int(updates), Path(file))


def fine_tune(work: Path, origin: Start, seed: int, folder: Path, options: List[str]) -> Path:
    """The averaged weights of one training; validation writes and scores some sentences."""
    start = [] if origin.file is None else ["--finetune-from-model", str(origin.file)]
    return train(work / "data-bin", TASK, folder, seed, ["--store-ema", "--ema-fp32", "--eval-rouge", *options, *start])


def score(work: Path, checkpoint: Path, arguments: argparse.Namespace) -> Dict[str, Dict[str, float]]:
    """The rows of evaluate.py for one model: by model score, mean, MBR, oracle, and the copied source."""
    output = generate(work / "data-bin", TASK, checkpoint, [
        "--gen-subset", arguments.subset, "--bpe", "sentencepiece", "--sentencepiece-model",
        arguments.bpe_model or work / "sentencepiece.model", "--diffusion-steps", arguments.steps, "--clamping",
        "--candidates", arguments.candidates, "--nbest", arguments.candidates, "--batch-size", arguments.batch_size])
    text = work / "text" / arguments.subset
    return evaluate(read_generated([str(output)]), read_lines(f"{text}.tgt"), read_lines(f"{text}.src"), name=MODEL,
                    utilities=("rougeL",) if arguments.candidates > 1 else (), oracle=arguments.oracle).rows


def scoring_of(arguments: argparse.Namespace) -> Dict:
    """What a row was scored with. The default oracle goes without saying: rows of studies that knew no other are not
    made again."""
    return {name: value for name, value in options_of(arguments, SCORING).items()
            if (name, value) != ("oracle", DEFAULT_ORACLE)}


def trainings(arguments: argparse.Namespace) -> Dict[str, Callable[[], Dict]]:
    """What makes a row for each start and seed, {"updates", "seed", "options", "scores"}."""
    def one(origin: Start, seed: int) -> Dict:
        folder = arguments.output / f"{origin.updates}-seed{seed}"
        averaged = fine_tune(arguments.work, origin, seed, folder, arguments.train)
        return {"updates": origin.updates, "seed": seed, "options": scoring_of(arguments),
                "scores": score(arguments.work, averaged, arguments)}

    return {f"{origin.updates}-seed{seed}": partial(one, origin, seed) for seed in range(1, arguments.seeds + 1)
            for origin in [Start(0, None), *sorted(arguments.checkpoint)]}


def table(rows: Dict[str, Dict]) -> str:
    """Each start and each way to choose a candidate: the mean over seeds, and every seed's ROUGE-L."""
    found: Dict[str, Dict] = {}
    for name in next(iter(rows.values()))["scores"]:
        if not name.startswith(MODEL):
            continue
        for updates in sorted({row["updates"] for row in rows.values()}):
            seeds = [row["scores"][name] for row in rows.values() if row["updates"] == updates]
            line = {key: sum(one[key] for one in seeds) / len(seeds) for key in MEASURES}
            line["rougeL of each seed"] = " ".join(f"{one['rougeL']:.2f}" for one in seeds)
            found[f"{updates} updates{name.removeprefix(MODEL)}"] = line
    return text_table(found, [*MEASURES, "rougeL of each seed"], digits=2)


def curves(folder: Path) -> Dict[str, List[Tuple[int, float]]]:
    """What validation has measured while a model was trained."""
    series = read_series([str(folder / "train.log")])
    return {name: series.get(name, {}).get("valid", []) for name in CURVES}


def plot(output: Path, rows: Dict[str, Dict], file: Path) -> None:
    """Validation over fine-tuning, a line a training; and the test set's score over updates of pre-training."""
    from matplotlib import colormaps, pyplot

    figure, axes = pyplot.subplots(1, len(CURVES) + 1, figsize=(15, 4.5), layout="constrained")
    updates = sorted({row["updates"] for row in rows.values()})
    for place, trained in enumerate(updates):
        colour = colormaps["viridis"](0.85 * place / max(1, len(updates) - 1))
        for name, row in rows.items():
            for axis, points in zip(axes, curves(output / name).values()) if row["updates"] == trained else ():
                if points:
                    axis.plot(*zip(*points), color=colour, label=f"{trained} updates of pre-training")
    for axis, title in zip(axes, CURVES.values()):
        axis.set(xlabel="updates of fine-tuning", title=title)
        axis.grid(alpha=0.3)
    for name in next(iter(rows.values()))["scores"]:
        if name.startswith(MODEL):
            points = [(row["updates"], row["scores"][name]["rougeL"]) for row in rows.values()]
            label = name.removeprefix(MODEL).removeprefix(": ") or "model score"
            axes[-1].plot(*zip(*sorted(points)), "o", label=label)
    axes[-1].set(xlabel="updates of pre-training", title="ROUGE-L after fine-tuning, each seed")
    axes[-1].grid(alpha=0.3)
    axes[-1].legend(fontsize=8)
    lines = dict(zip(*reversed(axes[0].get_legend_handles_labels())))
    if lines:
        axes[0].legend(lines.values(), lines.keys(), fontsize=8)
    figure.savefig(file, dpi=130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="DIR", help="folder with text/ and data-bin/, by binarise.py")
    parser.add_argument("--checkpoint", type=start, action="append", default=[], metavar="UPDATES=FILE",
                        help="a start: a checkpoint after so many updates of pre-training; repeatable")
    add_study_options(parser, "from each start")
    parser.add_argument("--subset", default="test", help="split to score (default: test)")
    parser.add_argument("--bpe-model", type=Path, metavar="FILE", help="default: sentencepiece.model in DIR")
    parser.add_argument("--steps", type=count(1), default=20, help="reverse steps, clamped (default: 20)")
    parser.add_argument("--candidates", type=count(1), default=10, help="of each sentence (default: 10)")
    parser.add_argument("--oracle", choices=OFFERED, default=DEFAULT_ORACLE,
                        help="as in evaluate.py (default: %(default)s; GENIE: rouge2)")
    parser.add_argument("--batch-size", type=count(1), default=64, help="sentences generated at a time (default: 64)")
    arguments = parse_study(parser)
    if len({origin.updates for origin in arguments.checkpoint}) < len(arguments.checkpoint):
        parser.error("two --checkpoint options have the same number of updates")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    for folder in (arguments.work / "data-bin", arguments.work / "text"):
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: make it with scripts/binarise.py")
    for origin in arguments.checkpoint:
        if not origin.file.is_file():
            raise UserError(f"no checkpoint {origin.file}")
    arguments.work = arguments.work.resolve()
    arguments.bpe_model = arguments.bpe_model and arguments.bpe_model.resolve()
    arguments.checkpoint = [origin._replace(file=origin.file.resolve()) for origin in arguments.checkpoint]
    prepare_output(arguments)
    content = content_of(arguments.work / "data-bin", arguments.work / "text")
    keep_options(arguments.output, {"train": arguments.train, "work": str(arguments.work), **content},
                 {f"{origin.updates} updates": sha256(origin.file) for origin in arguments.checkpoint})
    file = arguments.output / "study.json"
    forget_others(file, scoring_of(arguments))
    rows = measure(trainings(arguments), file, arguments.jobs)
    copied = next(iter(rows.values()))["scores"]["copy of the source"]
    said = (f"{table(rows)}\n\n{arguments.subset}, {arguments.steps} clamped steps, {arguments.seeds} seed(s); ROUGE "
            f"F1 x 100; MBR by ROUGE-L, the oracle reads the reference: the highest {arguments.oracle}\n"
            f"copy of the source: {json.dumps({key: round(copied[key], 2) for key in MEASURES})}\n")
    report(arguments.output / "study", rows, said, partial(plot, arguments.output))


if __name__ == "__main__":
    run_study(main)
