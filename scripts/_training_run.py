"""What a training leaves behind: its logs, its checkpoint, and the texts that were generated from it."""

import argparse
import ast
import dataclasses
import enum
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from fairseq import checkpoint_utils
from fairseq.dataclass.configs import FairseqConfig
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.registry import REGISTRIES
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import OmegaConf
from plot_losses import COUNTER, Series, read_series, records
from torch import Tensor

import diffusion_fairseq  # noqa: F401  mends how the host loads checkpoints, registers what has options
from diffusion_fairseq.diffusion.time_laws import TIME_LAWS, FittedTimes, TimeWarp
from diffusion_fairseq.diffusion.timesteps import LossSecondMomentTimesteps
from diffusion_fairseq.errors import UserError

LOGS = ("*.log", "*.out")
GENERATED = "generated*.txt"
CHECKPOINTS = ("checkpoint_last.pt", "checkpoint_best.pt")  # the first of them that is there
SAVE_DIR = re.compile(rb"'save_dir': '([^']*)'")
STAMP = re.compile(rb"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.MULTILINE)


class LossOverTime(NamedTuple):
    """The losses that a law of t keeps: `law`, its option's name; t (n,) that were met; the mean loss there (n,); what
    is drawn: p(t) (n,) of a discrete t, F(t) (n,) of a continuous one."""

    law: str
    t: Tensor
    loss: Tensor
    drawn: Tensor
    cumulative: bool


@dataclass
class Run:
    """A training.

    Attributes:
        logs: that were joined, in their order; broken: their broken lines by number; series: their curves, as
            plot_losses reads them, fairseq's bookkeeping among them.
        checkpoint: that was read, and what it holds.
        missing: what there is none of, in sentences, by name.
    """

    folder: Path
    logs: List[Path] = field(default_factory=list)
    broken: Dict[str, List[int]] = field(default_factory=dict)
    series: Series = field(default_factory=dict)
    checkpoint: Optional[Path] = None
    state: Dict[str, Any] = field(default_factory=dict)
    generated: List[Path] = field(default_factory=list)
    missing: Dict[str, str] = field(default_factory=dict)


def read_run(folder: Path, logs: Sequence[Path] = ()) -> Run:
    """All that a folder of checkpoints, or the one above it, holds of a training.

    Args:
        logs: of it; by default those in the folder.
    Raises:
        UserError: there is neither a log nor a checkpoint.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the one that --save-dir named")
    run = Run(folder)
    run.logs = in_order(list(logs) or beside(folder, *LOGS, wanted=lambda path: is_log(path, folder)))
    run.series = read_series([str(log) for log in run.logs], skipped=(), broken=run.broken)
    if not run.logs:
        run.missing["log"] = f"No log of a training in {folder} or the folder above it: --logs names one elsewhere, " \
                             "--log-file of the training writes one."
    read_checkpoint(run)
    if not run.logs and run.checkpoint is None:
        raise UserError(f"{folder} holds neither a log of a training nor a checkpoint that can be read: name the "
                        "folder that --save-dir named, and logs that lie elsewhere by --logs")
    run.generated = sorted(beside(folder, GENERATED), key=progress)
    if not run.generated:
        run.missing["generated"] = f"No {GENERATED} in {folder} or the folder above it."
    return run


def beside(folder: Path, *patterns: str, wanted: Callable[[Path], bool] = Path.is_file) -> List[Path]:
    """The wanted files of a folder, or of the one above it where it has none."""
    for place in (folder, folder.resolve().parent):
        found = sorted(path for pattern in patterns for path in place.glob(pattern) if wanted(path))
        if found:
            return found
    return []


def is_log(path: Path, folder: Path) -> bool:
    """Whether a file is a log of the training that saved to a folder: one beside other folders names its own."""
    if not path.is_file() or first_update(path) is None:
        return False
    named = SAVE_DIR.findall(path.read_bytes())
    return path.parent == folder or not named or folder.resolve().name in [Path(os.fsdecode(name)).name
                                                                          for name in named]


def first_update(log: Path) -> Optional[float]:
    """The update of a log's first record; None of a file that is no log of a training."""
    for record in records(str(log)):
        for key, value in record.items():
            if key == COUNTER or key.endswith("_" + COUNTER):
                try:
                    return float(value)
                except (TypeError, ValueError):
                    continue
    return None


def in_order(logs: List[Path]) -> List[Path]:
    """The logs as they were written: by their first stamp, or, where one has none, by their first update."""
    stamps = {log: STAMP.search(log.read_bytes()) for log in logs}
    if all(stamps.values()):
        return sorted(logs, key=lambda log: stamps[log][0])
    return sorted(logs, key=lambda log: (first_update(log) or 0.0, log.stat().st_mtime))


def progress(path: Path) -> Tuple[List[float], str]:
    """Sorts names by how far the training was: those of an untrained model, then by number, then without one."""
    untrained = [-1.0] if "untrained" in path.stem else []
    return untrained or [float(number) for number in re.findall(r"\d+", path.stem)] or [float("inf")], path.name


def read_checkpoint(run: Run) -> None:
    """The last checkpoint, or any other where there is none of that name."""
    others = sorted(run.folder.glob("*.pt"), key=lambda path: path.stat().st_mtime, reverse=True)
    found = [path for path in map(run.folder.joinpath, CHECKPOINTS) if path.is_file()] + others
    if not found:
        run.missing["checkpoint"] = f"No checkpoint in {run.folder}."
        return
    try:
        run.state = checkpoint_utils.load_checkpoint_to_cpu(str(found[0]))
    except UserError as error:
        run.missing["checkpoint"] = str(error)
        return
    run.checkpoint = found[0]


def configuration(state: Mapping[str, Any]) -> Dict[str, Dict[str, Any]]:
    """The options of a checkpoint by group; references to other options and to the environment stay as written."""
    cfg = state.get("cfg") or {}
    if OmegaConf.is_config(cfg):
        cfg = OmegaConf.to_container(cfg, resolve=False, enum_to_str=True)
    return {group: options for group, options in cfg.items() if isinstance(options, dict)}


def changed_options(cfg: Mapping[str, Mapping[str, Any]]) -> List[Tuple[str, str, Any, Any]]:
    """(group, option, value, default) of the options that differ from their defaults, those of --arch included; the
    default is None where it is unknown."""
    rows = []
    for group, options in cfg.items():
        known = defaults(group, options.get("_name"))
        for name, value in options.items():
            default = referred(known.get(name), cfg)
            if name != "_name" and (name not in known or as_given(value) != as_given(default)):
                rows.append((group, name, value, default))
    return rows


def as_given(value: Any) -> Any:
    """A value, of which a list and what is written for it on a command line are the same."""
    try:
        return tuple(value if isinstance(value, (list, tuple)) else ast.literal_eval(value))
    except (ValueError, SyntaxError, TypeError):
        return value


def defaults(group: str, name: Optional[str]) -> Dict[str, Any]:
    """Option -> default of a group of the configuration, or of what `name` chooses in it."""
    registered = {"model": MODEL_DATACLASS_REGISTRY, "task": TASK_DATACLASS_REGISTRY}
    if group in registered:
        chosen = registered[group].get(ARCH_MODEL_NAME_REGISTRY.get(name, name) if group == "model" else name)
    elif group in REGISTRIES:
        chosen = REGISTRIES[group]["dataclass_registry"].get(name)
    else:
        chosen = {one.name: one.type for one in dataclasses.fields(FairseqConfig)}.get(group)
    found = {}
    for one in dataclasses.fields(chosen) if dataclasses.is_dataclass(chosen) else ():
        default = one.default if one.default_factory is dataclasses.MISSING else one.default_factory()
        found[one.name] = default.name if isinstance(default, enum.Enum) else default
    if group == "model" and name in ARCH_CONFIG_REGISTRY:
        preset = argparse.Namespace()
        ARCH_CONFIG_REGISTRY[name](preset)
        found.update(vars(preset))
    return found


def referred(default: Any, cfg: Mapping[str, Mapping[str, Any]]) -> Any:
    """A default, or what the configuration holds at the place that it refers to."""
    place = re.fullmatch(r"\$\{(\w+)\.(\w+)\}", default) if isinstance(default, str) else None
    return cfg.get(place[1], {}).get(place[2], default) if place else default


def loss_over_time(state: Mapping[str, Any]) -> Optional[LossOverTime]:
    """What a learned law of t has met; None of a checkpoint with another law, or before any loss was met."""
    model = state.get("model") or {}
    tables = {key: model[f"timesteps.{key}"] for key in ("losses", "counts", "edges") if f"timesteps.{key}" in model}
    if "losses" not in tables or not tables["counts"].any():
        return None
    if "edges" in tables:
        name = configuration(state).get("criterion", {}).get("timestep_sampler")
        law = TIME_LAWS.get(name, TimeWarp)
        law, name = (law, name) if issubclass(law, FittedTimes) else (TimeWarp, "time-warp")
        law = law(float(tables["edges"][0]), float(tables["edges"][-1]), bins=len(tables["losses"]))
        law.load_state_dict(tables, strict=False)
        met = law.counts > 1e-3
        return LossOverTime(name, law.middles[met], law.losses[met] / law.counts[met], law.cdf(law.middles[met]), True)
    law = LossSecondMomentTimesteps(*tables["losses"].shape)
    law.load_state_dict(tables)
    met = law.counts > 0
    kept = law.counts.clamp(max=law.losses.size(1))
    return LossOverTime("loss-second-moment", met.nonzero()[:, 0].double(), (law.losses.sum(1) / kept)[met].double(),
                        law.probabilities()[met], False)
