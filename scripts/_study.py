"""What the studies share: trainings and rows that survive an interruption."""

import argparse
import json
import logging
import math
import os
import re
import statistics
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence, Tuple

import torch
from _commands import ENVIRONMENT, REPOSITORY, USER_DIR, CommandFailed, fairseq, run, stop_running
from _data import sha256
from _option_types import count
from tqdm import tqdm

from diffusion_fairseq.errors import UserError

SAVE_INTERVAL = 1000  # updates that an interruption may cost


def read_rows(file: Path) -> Dict[str, Dict]:
    """The rows that earlier runs have measured; none where there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): remove it, and what it held is made again") from None


def write_rows(file: Path, rows: Dict) -> None:
    """Keep all rows; a file is whole or not there."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(file.name + ".partial")
    unfinished.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    unfinished.replace(file)


def named(output: Path, ending: str) -> Path:
    """OUTPUT.ending; what stands after a dot in OUTPUT, as in noise-0.8, belongs to its name."""
    return output.with_name(output.name + ending)


def report(output: Path, rows: Dict[str, Dict], said: str, plot: Callable[[Dict[str, Dict], Path], None]) -> None:
    """Print what a study says of its rows, and write it to .txt, the plot to .png."""
    print(said)
    named(output, ".txt").write_text(said, encoding="utf-8")
    plot(rows, named(output, ".png"))


def device_options() -> List[str]:
    """What fairseq's commands are told where there is no GPU."""
    return [] if torch.cuda.is_available() else ["--cpu"]


def saving(options: Sequence[str]) -> List[str]:
    """What has a training saved every 1,000 updates or little more, where its options do not say when.

    fairseq validates whenever it saves within an epoch: so it saves where it is to validate anyway, if the options have
    such an interval; if they do not and have --patience, which counts validations, at the ends of epochs alone.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--validate-interval-updates", type=int, default=0)
    for name in ("--save-interval-updates", "--patience"):
        parser.add_argument(name)
    given, _ = parser.parse_known_args(options)
    every = given.validate_interval_updates
    if given.save_interval_updates is not None or (given.patience is not None and every < 1):
        return []
    return ["--save-interval-updates", str(math.ceil(SAVE_INTERVAL / max(1, every)) * max(1, every)),
            "--keep-interval-updates", "1"]


def train(data: Path, task: str, folder: Path, seed: int, options: Sequence[str]) -> Path:
    """The weights that one training ends with, ready to decode: those of --store-ema where the options have it.

    A training that was interrupted goes on from the last end of an epoch or, as `saving` or its options have it, from
    within one; one that is done is not begun. All it says is in folder/train.log.
    """
    exported = folder / "model.pt"
    if not exported.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # One process unless the options have more, so that a batch is the same on a machine of several GPUs.
        run(fairseq("fairseq-train", data, "--user-dir", USER_DIR, "--task", task, "--save-dir", folder, "--seed", seed,
                    "--no-epoch-checkpoints", "--log-format", "json", "--distributed-world-size", "1",
                    *device_options(), *saving(options), *options), folder / "train.log", mode="a")
        run([sys.executable, str(REPOSITORY / "scripts/export_checkpoint.py"),
             "--ema" if "--store-ema" in options else "--average", str(folder / "checkpoint_last.pt"), "--output",
             str(exported)], folder / "export.log")
    return exported


def generate(data: Path, task: str, checkpoint: Path, options: Sequence) -> Path:
    """What fairseq-generate prints of a checkpoint, in a file beside it that is whole or not there; with the same
    options it is not made again."""
    output, told = checkpoint.with_name("generated.txt"), checkpoint.with_name("generated.json")
    words = {"data": str(data), "options": list(map(str, options)), **content_of(data)}
    if not output.exists() or read_rows(told) != words:
        told.unlink(missing_ok=True)
        unfinished = output.with_suffix(".partial")
        run(fairseq("fairseq-generate", data, "--user-dir", USER_DIR, "--task", task, "--path", checkpoint, *options,
                    *device_options()), unfinished)
        unfinished.replace(output)
        write_rows(told, words)
    return output


def measure(trainings: Dict[str, Callable[[], Dict]], file: Path, jobs: int) -> Dict[str, Dict]:
    """The rows that trainings give, by name, `jobs` at a time; each is in the file as soon as it is known, and those
    that are there are not made again. The file may hold those of earlier runs beside them."""
    rows = read_rows(file)
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(one): name for name, one in trainings.items() if name not in rows}
        try:
            for done in tqdm(as_completed(waiting), total=len(waiting), unit=" trainings"):
                rows[waiting[done]] = done.result()
                write_rows(file, rows)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_running()
            raise
    return {name: rows[name] for name in trainings}


def take_turns(settings: Dict[str, Dict], measured: Callable[[Dict, int], Dict[str, Optional[float]]], seeds: int,
               file: Path, options: Dict) -> Dict[str, Dict]:
    """The rows that settings give, by name, over so many seeds; what the file does not hold yet is measured, by setting
    and seed, and the file is rewritten after each measurement. Each row has the options, which are of all of them.

    All settings take their turn with a seed before the next seed, so that a machine that slows down meanwhile slows
    all of them; seconds are the median over seeds, the other columns means.

    Raises:
        UserError: the file holds rows of other options.
    """
    rows = read_rows(file)
    refuse_others(file, rows, options)

    def row_of(setting: Dict, found: List[Dict]) -> Dict:
        columns = {key: [one[key] for one in found if one[key] is not None] for key in found[0]}
        mean = {key: (statistics.median if key == "seconds" else statistics.fmean)(values) if values else None
                for key, values in columns.items()}
        return {**setting, "options": options, **mean, "seeds": found}

    wanted = [(seed, name) for seed in range(1, seeds + 1) for name in settings
              if len(rows.get(name, {"seeds": ()})["seeds"]) < seed]
    for seed, name in tqdm(wanted, unit=" runs"):
        found = rows.get(name, {"seeds": []})["seeds"] + [measured(settings[name], seed)]
        rows[name] = row_of(settings[name], found)
        write_rows(file, rows)
    return {name: row_of(setting, rows[name]["seeds"][:seeds]) for name, setting in settings.items()}


def refuse_others(file: Path, rows: Dict[str, Dict], options: Dict) -> None:
    """Refuse to mix in one file what was measured with other options.

    Raises:
        UserError: a row has others.
    """
    for row in rows.values():
        known = row.get("options", {})
        if changed := [name for name in {**known, **options} if known.get(name) != options.get(name)]:
            raise UserError(f"{file} was measured with other options ({', '.join(changed)}): name another --output")


def forget_others(file: Path, options: Dict) -> None:
    """Leave in a file only the rows that were measured with these options, where the others are soon made again."""
    rows = read_rows(file)
    kept = {name: row for name, row in rows.items() if row.get("options") == options}
    if len(kept) < len(rows):
        write_rows(file, kept)


def keep_options(output: Path, fixed: Dict, variants: Dict[str, str]) -> None:
    """Refuse to mix in one folder what was made with other options: those in `fixed` are of all that is there ("train":
    what every training was told); variants, each with its own, may be added.

    Raises:
        UserError: what is there was made with other options, or nobody knows which.
    """
    file = output / "options.json"
    try:
        known = read_rows(file) or {**fixed, "variants": {}}
    except UserError:
        raise UserError(f"{file} is damaged, so that nobody knows how {output} was begun: name another "
                        "--output") from None
    changed = [name for name, options in variants.items() if known["variants"].get(name, options) != options]
    changed += ["the options after --" if name == "train" else name for name in fixed if known.get(name) != fixed[name]]
    if changed:
        raise UserError(f"{output} was begun with other options ({', '.join(changed)}): name another --output, or give "
                        f"those of {file}")
    known["variants"].update(variants)
    write_rows(file, known)


def options_of(arguments: argparse.Namespace, names: Sequence[str],
               folders: Optional[Dict[str, Sequence[str]]] = None) -> Dict:
    """What a row was measured with, as JSON holds it; of files the digest of what is in them, wherever they lie.

    Args:
        folders: options that name folders (or several, with colons between), each with the patterns of the files in
            it that are read.
    """
    def value(name: str):
        given = getattr(arguments, name)
        if folders and name in folders:
            parts = [Path(folder) for folder in str(given).split(os.pathsep)]
            return sha256(*(file for part in parts for pattern in folders[name] for file in sorted(part.glob(pattern))))
        return sha256(given) if isinstance(given, (str, Path)) and Path(given).is_file() else given

    return json.loads(json.dumps({name: value(name) for name in names}, default=str))


def content_of(*folders: Path) -> Dict[str, str]:
    """What `keep_options` is to know data by, wherever it lies: the digest of its files, but for logs and the training
    text, which may be large and for which its index stands."""
    files = (file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file())
    return {"content of the data": sha256(*(
        file for file in files
        if file.suffix == ".idx" or not (file.name.startswith("train") or file.suffix == ".log")))}


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
    parser.add_argument("--seeds", type=count(1), default=3, help=f"trainings {each} (default: %(default)s)")
    parser.add_argument("--jobs", type=count(1), default=1,
                        help="trainings at a time, which share the cores: small models train two at a time faster than "
                             "one after the other (default: 1). Of several GPUs each takes the first, unless "
                             "--distributed-world-size stands among its options")


def parse_study(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The command line's options, with those of the trainings as `train`."""
    own, training = split_command_line()
    arguments = parser.parse_args(own)
    arguments.train = training
    if not training:
        parser.error("no options of fairseq-train: give them after --")
    return arguments


def prepare_output(arguments: argparse.Namespace) -> None:
    """Make the output's folder, and share the cores among the jobs."""
    arguments.output = arguments.output.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.jobs > 1:
        ENVIRONMENT.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // arguments.jobs)))


def run_study(main: Callable[[], None]) -> None:
    """Call main(); end in one line where it cannot go on, or is told to stop."""
    logging.disable(logging.INFO)  # of fairseq; warnings stay
    try:
        main()
    except (UserError, CommandFailed, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command continues")
