"""What the studies share: trainings and rows that survive an interruption, and numbers from the command line."""

import argparse
import json
import math
import os
import re
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import torch
from _commands import ENVIRONMENT, REPOSITORY, USER_DIR, CommandFailed, fairseq, run
from tqdm import tqdm

from diffusion_fairseq.errors import UserError


def read_rows(file: Path) -> Dict[str, Dict]:
    """The rows that earlier runs have measured; none where there is no such file."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def write_rows(file: Path, rows: Dict[str, Dict]) -> None:
    """Keep all rows; a file is whole or not there."""
    unfinished = file.with_name(file.name + ".partial")
    unfinished.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    unfinished.replace(file)


def report(output: Path, rows: Dict[str, Dict], said: str, plot: Callable[[Dict[str, Dict], Path], None]) -> None:
    """Print what a study says of its rows, and write .json, .txt and .png."""
    write_rows(output.with_suffix(".json"), rows)
    output.with_suffix(".txt").write_text(said, encoding="utf-8")
    print(said)
    plot(rows, output.with_suffix(".png"))


def numbers(text: str) -> List[int]:
    """Parse N,M,..."""
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give whole numbers with commas between, such as 5,10,20") from None


def decimals(text: str) -> List[float]:
    """Parse X,Y,..."""
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give numbers with commas between, such as 0.8,1,1.2") from None


def listed(known: Iterable[str]) -> Callable[[str], List[str]]:
    """A parser of A,B,... out of `known`."""
    def parse(text: str) -> List[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is unknown: choose among {', '.join(known)}")
        return names
    return parse


def device_options() -> List[str]:
    """What fairseq's commands are told where there is no GPU."""
    return [] if torch.cuda.is_available() else ["--cpu"]


def train(data: Path, task: str, folder: Path, seed: int, options: Sequence[str]) -> Path:
    """The weights that one training ends with, ready to decode: those of --store-ema where the options have it.

    A training that was interrupted goes on; one that is done is not begun. All it says is in folder/train.log.
    """
    exported = folder / "model.pt"
    if not exported.exists():
        folder.mkdir(parents=True, exist_ok=True)
        run(fairseq("fairseq-train", data, "--user-dir", USER_DIR, "--task", task, "--save-dir", folder, "--seed", seed,
                    "--no-epoch-checkpoints", "--log-format", "json", *device_options(), *options),
            folder / "train.log", mode="a")
        run([sys.executable, str(REPOSITORY / "scripts/export_checkpoint.py"),
             "--ema" if "--store-ema" in options else "--average", str(folder / "checkpoint_last.pt"), "--output",
             str(exported)], folder / "export.log")
    return exported


def generate(data: Path, task: str, checkpoint: Path, options: Sequence) -> Path:
    """What fairseq-generate prints of a checkpoint, in a file beside it that is whole or not there."""
    output = checkpoint.with_name("generated.txt")
    if not output.exists():
        unfinished = output.with_suffix(".partial")
        run(fairseq("fairseq-generate", data, "--user-dir", USER_DIR, "--task", task, "--path", checkpoint, *options,
                    *device_options()), unfinished)
        unfinished.rename(output)
    return output


def measure(trainings: Dict[str, Callable[[], Dict]], file: Path, jobs: int) -> Dict[str, Dict]:
    """The rows that trainings give, by name, `jobs` at a time; each is in the file as soon as it is known, and those
    that are there are not made again."""
    rows = read_rows(file)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(one): name for name, one in trainings.items() if name not in rows}
        try:
            for done in tqdm(as_completed(waiting), total=len(waiting), unit=" trainings"):
                rows[waiting[done]] = done.result()
                write_rows(file, rows)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return rows


def take_turns(settings: Dict[str, Dict], measured: Callable[[Dict, int], Dict[str, Optional[float]]], seeds: int,
               file: Path) -> Dict[str, Dict]:
    """The rows that settings give, by name, what the file does not hold yet measured, by setting and seed; the file is
    rewritten after each measurement.

    All settings take their turn with a seed before the next seed, so that a machine that slows down meanwhile slows
    all of them; seconds are the median over seeds, the other columns means.
    """
    rows = read_rows(file)
    wanted = [(seed, name) for seed in range(1, seeds + 1) for name in settings
              if len(rows.get(name, {"seeds": ()})["seeds"]) < seed]
    for seed, name in tqdm(wanted, unit=" runs"):
        found = rows.get(name, {"seeds": []})["seeds"] + [measured(settings[name], seed)]
        columns = {key: [one[key] for one in found if one[key] is not None] for key in found[0]}
        mean = {key: (statistics.median if key == "seconds" else statistics.fmean)(values) if values else None
                for key, values in columns.items()}
        rows[name] = {**settings[name], **mean, "seeds": found}
        write_rows(file, rows)
    return rows


def forget_others(file: Path, options: Dict) -> None:
    """Leave in a file only the rows that were measured with these options."""
    rows = read_rows(file)
    kept = {name: row for name, row in rows.items() if row["options"] == options}
    if len(kept) < len(rows):
        write_rows(file, kept)


def keep_options(output: Path, fixed: Dict, variants: Dict[str, str]) -> None:
    """Refuse to mix in one folder what was made with other options: those in `fixed` are of all that is there ("train":
    what every training was told); variants, each with its own, may be added.

    Raises:
        UserError: what is there was made with other options.
    """
    file = output / "options.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {**fixed, "variants": {}}
    changed = [name for name, options in variants.items() if known["variants"].get(name, options) != options]
    changed += ["the options after --" if name == "train" else name for name in fixed if known.get(name) != fixed[name]]
    if changed:
        raise UserError(f"{output} was begun with other options ({', '.join(changed)}): name another --output, or give "
                        f"those of {file}")
    known["variants"].update(variants)
    file.write_text(json.dumps(known, indent=1), encoding="utf-8")


def folder_of(variant: str, seed: int) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_.]+', '-', variant)}-seed{seed}"


def by_variant(rows: Dict[str, Dict]) -> Dict[str, List[Dict]]:
    """The rows of each variant, in the order of their seeds."""
    found: Dict[str, List[Dict]] = {}
    for row in sorted(rows.values(), key=lambda row: row["seed"]):
        found.setdefault(row["variant"], []).append(row)
    return found


def mean_of(values: List[float], digits: int) -> Optional[str]:
    """The mean, and where there are several the standard deviation."""
    if not values:
        return None
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1))
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if len(values) > 1 else "")


def band(series: List[List[Tuple[float, float]]]) -> Tuple[List[float], ...]:
    """x, mean, least and most of several curves, where all of them have a point."""
    curves = [dict(map(tuple, points)) for points in series]
    x = sorted(set.intersection(*map(set, curves)))
    values = [[curve[at] for curve in curves] for at in x]
    return x, [sum(each) / len(each) for each in values], [min(each) for each in values], [max(each) for each in values]


def draw_bands(axis, series: Dict[str, List[List[Tuple[float, float]]]]) -> None:
    """A line a variant, the mean of its seeds' curves, and their range as a band."""
    for place, (variant, curves) in enumerate(series.items()):
        x, mean, least, most = band(curves)
        line, = axis.plot(x, mean, "o-", markersize=3, color=f"C{place}", label=variant)
        axis.fill_between(x, least, most, color=line.get_color(), alpha=0.2, linewidth=0)


def split_command_line() -> Tuple[List[str], List[str]]:
    """The words before and after the first --: a study's own, and those for every training."""
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    return words[:place], words[place + 1 :]


def add_study_options(parser: argparse.ArgumentParser, each: str) -> None:
    """The options of a study that trains, several times for `each` of what it compares."""
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of all that is made")
    parser.add_argument("--seeds", type=int, default=3, help=f"trainings {each} (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1,
                        help="trainings at a time, which share the cores: small models train two at a time faster than "
                             "one after the other (default: 1)")


def parse_study(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line's options, with those of the trainings as `train`."""
    own, training = split_command_line()
    arguments = parser.parse_args(own)
    arguments.train = training
    if not training:
        parser.error("no options of fairseq-train: give them after --")
    if arguments.seeds < 1 or arguments.jobs < 1:
        parser.error("--seeds and --jobs must be at least 1")
    return arguments


def prepare_output(arguments: argparse.Namespace) -> None:
    """Make the output's folder, and share the cores among the jobs."""
    arguments.output = arguments.output.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.jobs > 1:
        ENVIRONMENT.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // arguments.jobs)))


def run_study(main: Callable[[], None]) -> None:
    """Call main(); end in one line where it cannot go on, or is told to stop."""
    try:
        main()
    except (UserError, CommandFailed, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")
