#!/usr/bin/env python3
"""Turn training checkpoints into one that only decodes: the EMA weights of one, or the average of several.

    python scripts/export_checkpoint.py --ema checkpoint_last.pt --output ema.pt
    python scripts/export_checkpoint.py --average checkpoint8.pt checkpoint9.pt --output average.pt
    python scripts/export_checkpoint.py --ema checkpoint_last.pt --share --output model.pt

The result is an ordinary fairseq checkpoint with the settings of its (last) input, without the optimizer's state, in
float32. With --share it is one to pass on: matrices in float16, for half the size on disk (commands compute in float32
all the same), and no path of this machine in the settings. An input that holds more than weights and settings, such as
code, is refused.
"""

import argparse
import os
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

import _environment  # noqa: F401  says what this Python lacks
import torch
from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from torch import Tensor

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.persistence import MET

STARTING_SHARE = 0.05  # of the weights that training began with, which the EMA may still hold
EMA_KEYS = ("ema_fp32_params", "ema")  # the more exact one first
TRAINING_ONLY = {*EMA_KEYS, "metrics", "early_stopping"}
LEVELS = "schedule.log_snr"
# Beginnings of the names of what is counted or fitted, not learned by steps: fairseq averages it like weights, and what
# comes to be after the EMA is not in it.
FACTS = (*MET, "timesteps.", "schedule.")


def check_same_tensors(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], names: tuple[str, str]
) -> None:
    """Raises UserError that lists the keys only one has and the shapes that differ."""
    shapes = [
        f"{key} {tuple(first[key].shape)} against {tuple(second[key].shape)}"
        for key in first
        if key in second and first[key].shape != second[key].shape
    ]
    problems = {
        f"only {names[0]} has": [key for key in first if key not in second],
        f"only {names[1]} has": [key for key in second if key not in first],
        "different shapes:": shapes,
    }
    found = [f"{what} {listed(keys)}" for what, keys in problems.items() if keys]
    if found:
        raise UserError(f"{names[0]} and {names[1]} do not fit: {'; '.join(found)}")


def listed(keys: Sequence[str], most: int = 5) -> str:
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def ema_weights(state: dict, path: str) -> dict[str, Tensor]:
    weights = next((state["extra_state"][key] for key in EMA_KEYS if state["extra_state"].get(key)), None)
    if weights is None:
        raise UserError(f"{path}: holds no EMA weights; they are kept when training with --store-ema")
    own = state["model"]
    weights = {**{key: tensor for key, tensor in weights.items() if not key.startswith(FACTS)},
               **{key: tensor for key, tensor in own.items() if key.startswith(FACTS)}}
    check_same_tensors(own, weights, (path, "its EMA"))
    return {key: weights[key].float() if weights[key].is_floating_point() else weights[key] for key in own}


def warn_of_starting_weights(state: dict, path: str) -> None:
    """Say so where the EMA still holds much of what training began with: it was short for such a decay."""
    cfg = (state.get("cfg") or {}).get("ema") or {}
    decay, every = cfg.get("ema_decay"), max(1, cfg.get("ema_update_freq") or 1)
    share = decay ** (state["optimizer_history"][-1]["num_updates"] // every) if decay else 0
    if share > STARTING_SHARE:
        print(f"warning: {share:.0%} of {path}'s EMA is what training began with: train longer, or with a smaller "
              f"--ema-decay than {decay:g}, or take the weights themselves by --average {path}", file=sys.stderr)


def averaged_weights(paths: Sequence[str]) -> tuple[dict, dict[str, Tensor]]:
    """The last checkpoint, and the mean of all weights; FACTS and tensors of integers are the last one's."""
    sums: dict[str, Tensor] = {}
    for path in paths:
        state = checkpoint_utils.load_checkpoint_to_cpu(path)
        weights = state["model"]
        check_same_tensors(sums or weights, weights, (paths[0], path))
        for key, tensor in weights.items():
            averaged = tensor.is_floating_point() and not key.startswith(FACTS)
            sums[key] = tensor.double() / len(paths) + sums.get(key, 0.0) if averaged else tensor
    return state, {key: t.float() if t.is_floating_point() else t for key, t in sums.items()}


def halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Matrices in float16, but for noise levels, which must be exact. Vectors stay as they are: they weigh little, and
    among them are buffers that must be exact, too, such as what a time warp has learned."""
    return {key: tensor.half() if tensor.is_floating_point() and tensor.dim() > 1 and not key.endswith(LEVELS) else
            tensor for key, tensor in weights.items()}


def without_folders(settings):
    """Settings, nested as they are, with absolute paths cut to the names of their files."""
    if isinstance(settings, Mapping):
        return {key: without_folders(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [without_folders(value) for value in settings]
    if isinstance(settings, str) and os.path.isabs(settings):
        return os.pathsep.join(Path(path).name for path in settings.split(os.pathsep))
    return settings


def decoding_checkpoint(state: dict, weights: dict[str, Tensor]) -> dict:
    """`state` with these weights, without what only continued training needs, in plain containers."""
    exported = {key: value for key, value in state.items() if key != "last_optimizer_state"}
    exported["model"] = OrderedDict(weights)
    # Fingerprints of dictionaries and names of labels.
    exported["model"]._metadata = getattr(state["model"], "_metadata", {})
    exported["extra_state"] = {k: v for k, v in state["extra_state"].items() if k not in TRAINING_ONLY}
    if OmegaConf.is_config(state.get("cfg")):
        exported["cfg"] = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
    return exported


def write(state: dict, path: str) -> None:
    """All or nothing: a reader never sees half a file."""
    partial = f"{path}.tmp"
    try:
        torch.save(state, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        Path(partial).unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written: {str(error).splitlines()[0]}") from None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ema", metavar="FILE", help="export the EMA weights of this checkpoint")
    what.add_argument("--average", nargs="+", metavar="FILE", help="export the mean of these checkpoints")
    parser.add_argument("--output", required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--share", action="store_true",
                        help="for a file to pass on: matrices in float16, names of files without their folders")
    args = parser.parse_args(arguments)
    inputs = [args.ema] if args.ema else args.average
    if any(os.path.exists(args.output) and os.path.samefile(args.output, path) for path in inputs):
        raise UserError(f"--output {args.output} is an input, and would lose its optimizer state")
    if args.ema:
        state = checkpoint_utils.load_checkpoint_to_cpu(args.ema)
        weights = ema_weights(state, args.ema)
        warn_of_starting_weights(state, args.ema)
    else:
        state, weights = averaged_weights(args.average)
    exported = decoding_checkpoint(state, halved(weights) if args.share else weights)
    if args.share:
        exported["cfg"] = without_folders(exported["cfg"])
    write(exported, args.output)
    kind = "EMA" if args.ema else f"average of {len(inputs)}"
    updates = state["optimizer_history"][-1]["num_updates"]
    print(f"{args.output}: {kind}, {sum(t.numel() for t in weights.values()):,} weights, update {updates}")


if __name__ == "__main__":
    main()
