"""GLUE from scratch and from pre-trained DDLMs: a grid of settings, and several seeds of the best, on the dev set.

    python scripts/study_glue.py runs/glue --checkpoint span=runs/c4/averaged.pt --checkpoint random=other.pt \\
        --output runs/glue/study -- --arch ddlm_classifier_base

The first folder is one that scripts/prepare_glue.py made. For every task and every start (from scratch is always among
them) one training a setting, then more seeds of the best one ("Democratized Diffusion Language Model", section 4.2 and
tables 6 and 8): a result is the best validation of a training. What table 7 has apart, F1 and accuracy of MRPC and QQP
and both parts of MNLI, stands beside it, after the same epoch. AdamW, a constant learning rate, texts cut to 64 tokens;
what stands after -- goes to every fairseq-train and may say otherwise, such as --freeze-encoder for a linear probe, or
--max-epoch 3. An --arch other than ddlm_classifier_* has no time, and --times is not read. Writes study.json, study.txt
and study.png into --output. Interrupted, it goes on where it was, in the middle of a training; tasks, starts, settings
and seeds may be added.
"""

import argparse
import json
import shlex
from functools import partial
from itertools import product
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Tuple

import _environment  # noqa: F401  says what this Python lacks
from _commands import USER_DIR, fairseq, run
from _data import sha256
from _option_types import named
from _study import (
    add_study_options,
    content_of,
    device_options,
    keep_options,
    mean_of,
    measure,
    parse_study,
    prepare_output,
    report,
    run_study,
)
from plot_losses import Series, read_series

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics.report import text_table

SCRATCH, MAJORITY = "from scratch", "most frequent label"
FINE_TUNING = ["--optimizer", "adam", "--weight-decay", "0.01", "--lr-scheduler", "fixed", "--max-positions", "64",
               "--shorten-method", "truncate",
               # a batch size is that of an update, and MCC and F1 are of one process
               "--distributed-world-size", "1"]
METRICS = {"accuracy": "accuracy", "mcc": "Matthews correlation", "acc_and_f1": "mean of accuracy and F1",
           "pearson_and_spearman": "mean of Pearson's and Spearman's correlation"}
# What a mean is of, under fairseq's names, in the order in which the benchmark prints them.
PARTS = {"acc_and_f1": {"F1": "f1", "accuracy": "accuracy"},
         "pearson_and_spearman": {"Pearson": "pearson", "Spearman": "spearman"}}


class Setting(NamedTuple):
    """A point of the grid; the numbers as they were given, and no time where the model reads none."""

    lr: str
    batch_size: str
    time: str

    def __str__(self) -> str:
        return f"lr{self.lr}-batch{self.batch_size}" + (f"-t{self.time}" if self.time else "")


Cell = Tuple[str, str]  # task, start


def start(text: str) -> Tuple[str, Path]:
    name, file = named("NAME=FILE", Path, "span=averaged.pt")(text)
    if not name.replace("-", "").replace("_", "").isalnum():
        raise argparse.ArgumentTypeError(f"{text!r}: a name has letters, digits, - and _")
    if name == SCRATCH.replace(" ", "-"):
        raise argparse.ArgumentTypeError(f"{name} is how trainings {SCRATCH} are called: give another name")
    return name, file


def values(kind: Callable) -> Callable[[str], List[str]]:
    """A parser of positive numbers with commas between that keeps them as they were written."""
    def parse(text: str) -> List[str]:
        try:
            if all(kind(word) > 0 for word in text.split(",")):
                return text.split(",")
        except ValueError:
            pass
        raise argparse.ArgumentTypeError(f"{text!r}: give positive numbers with commas between")
    return parse


def fine_tune(arguments: argparse.Namespace, cell: Cell, setting: Setting, seed: int) -> Dict:
    """The row of one training: its validation after every epoch, and the best of them."""
    task, origin = cell
    data, folder = arguments.work / task, arguments.output / name_of(cell, setting, seed)
    folder.mkdir(parents=True, exist_ok=True)
    known, file = facts(arguments.work, task), arguments.starts[origin]
    options = shlex.split((data / "options.txt").read_text(encoding="utf-8"))
    if "valid1" in known["examples"]:
        options += ["--valid-subset", "valid,valid1"]
    if setting.time:
        options += ["--classification-time", setting.time]
    run(fairseq("fairseq-train", data, "--user-dir", USER_DIR, *options, *FINE_TUNING, "--lr", setting.lr,
                "--batch-size", setting.batch_size, "--seed", seed, "--save-dir", folder, "--no-epoch-checkpoints",
                "--log-format", "json", *device_options(), *arguments.train,
                *(["--finetune-from-model", file] if file else [])), folder / "train.log", mode="a")
    series = read_series([str(folder / "train.log")])
    curve = series.get(known["metric"], {}).get("valid", [])
    if not curve:
        raise UserError(f"{folder / 'train.log'} has no validation by {known['metric']}: leave --disable-validation "
                        "out")
    for checkpoint in folder.glob("*.pt"):
        checkpoint.unlink()  # hundreds of them would fill a disk; what is kept is what they scored
    update, best = max(curve, key=lambda point: point[1])
    return {"task": task, "start": origin, **setting._asdict(), "seed": seed, "best": best,
            "parts": parts_of(known, series, update), "curve": curve}


def parts_of(known: Dict, series: Series, update: int) -> Dict[str, float]:
    """What validation says apart after an update: of a mean what it is of, or of a task both validation sets."""
    metric = known["metric"]
    wanted = {name: (term, "valid") for name, term in PARTS.get(metric, {}).items()}
    if "valid1" in known["examples"]:
        wanted = {"matched": (metric, "valid"), "mismatched": (metric, "valid1")}
    curves = {name: dict(series.get(term, {}).get(subset, ())) for name, (term, subset) in wanted.items()}
    return {name: curve[update] for name, curve in curves.items() if update in curve}


def name_of(cell: Cell, setting: Setting, seed: int) -> str:
    return f"{cell[0]}-{cell[1].replace(' ', '-')}-{setting}-seed{seed}"


def facts(work: Path, task: str) -> Dict:
    return json.loads((work / task / "task.json").read_text(encoding="utf-8"))


def best_settings(arguments: argparse.Namespace, rows: Dict[str, Dict]) -> Dict[Cell, Setting]:
    """The setting of each task and start whose first seed is best; of equal ones the first."""
    return {cell: max(arguments.grid, key=lambda setting: rows[name_of(cell, setting, 1)]["best"])
            for cell in product(arguments.tasks, arguments.starts)}


def study(arguments: argparse.Namespace) -> Tuple[Dict[str, Dict], Dict[Cell, Setting]]:
    """The rows of the grid, and of the other seeds of its best settings."""
    file = arguments.output / "study.json"
    cells = list(product(arguments.tasks, arguments.starts))
    grid = {name_of(cell, setting, 1): partial(fine_tune, arguments, cell, setting, 1)
            for cell, setting in product(cells, arguments.grid)}
    rows = measure(grid, file, arguments.jobs)
    chosen = best_settings(arguments, rows)
    seeds = {name_of(cell, chosen[cell], seed): partial(fine_tune, arguments, cell, chosen[cell], seed)
             for seed in range(1, arguments.seeds + 1) for cell in cells}
    return {**rows, **measure(seeds, file, arguments.jobs)}, chosen


def seeds_of(arguments: argparse.Namespace, rows: Dict[str, Dict], cell: Cell, setting: Setting) -> List[Dict]:
    """The rows of all seeds of a setting."""
    return [rows[name_of(cell, setting, seed)] for seed in range(1, arguments.seeds + 1)]


def apart(rows: List[Dict]) -> Optional[str]:
    """The means over seeds of the parts; none where a row lacks one, as those of studies that kept no parts."""
    names = list(rows[0].get("parts", {}))
    if not names or any(list(row.get("parts", {})) != names for row in rows):
        return None
    return " / ".join(mean_of([row["parts"][name] for row in rows], 1) for name in names)


def tables(arguments: argparse.Namespace, rows: Dict[str, Dict], chosen: Dict[Cell, Setting]) -> str:
    """Mean over seeds, what it is of, best of all, and the chosen settings."""
    def majority(task: str) -> Optional[str]:
        known = facts(arguments.work, task)
        return f"{known[MAJORITY]:.1f}" if known["metric"] == "accuracy" else None

    def best(cell: Cell) -> str:
        return f"{max(row['best'] for row in rows.values() if (row['task'], row['start']) == cell):.1f}"

    def each(cell_of: Callable[[Cell], Optional[str]]) -> Dict[str, Dict[str, Optional[str]]]:
        return {origin: {task: cell_of((task, origin)) for task in arguments.tasks} for origin in arguments.starts}

    seeds = {cell: seeds_of(arguments, rows, cell, setting) for cell, setting in chosen.items()}
    means = each(lambda cell: mean_of([row["best"] for row in seeds[cell]], 1))
    means[MAJORITY] = {task: majority(task) for task in arguments.tasks}
    names = {task: " / ".join(row["parts"]) for (task, _), of in seeds.items() for row in of if row.get("parts")}
    found = {f"mean over {arguments.seeds} seed(s) of the best setting": text_table(means, arguments.tasks)}
    if names:
        found["its parts: " + ", ".join(f"{task} {of}" for task, of in names.items())] = text_table(
            each(lambda cell: apart(seeds[cell])), [task for task in arguments.tasks if task in names])
    found["best of all trainings"] = text_table(each(best), arguments.tasks)
    found["best setting"] = text_table(each(lambda cell: str(chosen[cell])), arguments.tasks)
    metrics = ", ".join(f"{task}: {METRICS[facts(arguments.work, task)['metric']]}" for task in arguments.tasks)
    return "\n\n".join(f"{title}\n\n{table}" for title, table in found.items()) + f"\n\ndev set, x 100. {metrics}\n"


def plot(arguments: argparse.Namespace, chosen: Dict[Cell, Setting], rows: Dict[str, Dict], file: Path) -> None:
    """A panel a task: for every start the trainings of the grid, by their t, and the seeds of the best setting."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(arguments.tasks), figsize=(4 * len(arguments.tasks) + 1, 4.5), squeeze=False,
                                   layout="constrained")
    times = sorted({setting.time for setting in arguments.grid}, key=lambda time: float(time or 0))
    for axis, task in zip(axes[0], arguments.tasks):
        for place, origin in enumerate(arguments.starts):
            for number, time in enumerate(times):
                points = [rows[name_of((task, origin), setting, 1)]["best"] for setting in arguments.grid
                          if setting.time == time]
                axis.plot([place - 0.15] * len(points), points, ".", color=f"C{number}", alpha=0.6,
                          label=("grid" + (f", t = {time}" if time else "")) if not place else None)
            seeds = [row["best"] for row in seeds_of(arguments, rows, (task, origin), chosen[task, origin])]
            axis.plot([place + 0.15] * len(seeds), seeds, "o", color="black", fillstyle="none",
                      label="seeds of the best setting" if not place else None)
        known = facts(arguments.work, task)
        if known["metric"] == "accuracy":
            axis.axhline(known[MAJORITY], color="grey", linestyle=":", label=MAJORITY)
        axis.set(title=task, ylabel=METRICS[known["metric"]], xticks=range(len(arguments.starts)),
                 xlim=(-0.5, len(arguments.starts) - 0.5))
        axis.set_xticklabels(arguments.starts, rotation=20)
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.savefig(file, dpi=130)


def reads_time(train: List[str]) -> bool:
    """Whether options of fairseq-train name a model that has --classification-time; others end at that option."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--arch", "-a", default="")
    return parser.parse_known_args(train)[0].arch.startswith("ddlm_classifier")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="DIR", help="folder with a folder a task, by prepare_glue.py")
    parser.add_argument("--tasks", type=lambda text: text.split(","), metavar="NAME,...",
                        help="default: those that are there")
    parser.add_argument("--checkpoint", type=start, action="append", default=[], metavar="NAME=FILE",
                        help="a start: a DDLM of the sizes that stand after --; repeatable")
    for option, kind, default, what in (
        ("--learning-rates", float, "3e-4,1e-4,3e-5,1e-5", "of AdamW"),
        ("--batch-sizes", int, "16,32,64,128", "texts an update"),
        ("--times", float, "1,5,10", "values of --classification-time, for --arch ddlm_classifier_*"),
    ):
        parser.add_argument(option, type=values(kind), default=values(kind)(default), metavar="N,M,...",
                            help=f"{what} (default: {default})")
    add_study_options(parser, "of the best setting")
    parser.set_defaults(seeds=5)
    arguments = parse_study(parser)
    arguments.starts = {SCRATCH: None, **{name: file.resolve() for name, file in arguments.checkpoint}}
    if len(arguments.starts) <= len(arguments.checkpoint):
        parser.error("two --checkpoint options have the same name")
    times = arguments.times if reads_time(arguments.train) else [""]
    arguments.grid = [Setting(*point) for point in product(arguments.learning_rates, arguments.batch_sizes, times)]
    return arguments


def main() -> None:
    arguments = parse_arguments()
    arguments.work = arguments.work.resolve()
    there = sorted(file.parent.name for file in arguments.work.glob("*/task.json"))
    arguments.tasks = arguments.tasks or there
    if not there or set(arguments.tasks) - set(there):
        raise UserError(f"{arguments.work} lacks {', '.join(set(arguments.tasks) - set(there)) or 'any task'}: make it "
                        "with scripts/prepare_glue.py")
    for file in arguments.starts.values():
        if file and not file.is_file():
            raise UserError(f"no checkpoint {file}")
    prepare_output(arguments)
    keep_options(arguments.output, {"train": arguments.train, "work": str(arguments.work)},
                 {**{f"the data of {task}": content_of(arguments.work / task)["content of the data"] for task in there},
                  **{name: sha256(file) if file else "" for name, file in arguments.starts.items()}})
    rows, chosen = study(arguments)
    report(arguments.output / "study", rows, f"{tables(arguments, rows, chosen)}every training: "
           f"{shlex.join(arguments.train)}\n", partial(plot, arguments, chosen))


if __name__ == "__main__":
    run_study(main)
