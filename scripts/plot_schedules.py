#!/usr/bin/env python3
"""Plot noise schedules over time: alpha-bar, the log signal-to-noise ratio and the betas.

    python scripts/plot_schedules.py --output schedules.png                  # all of the papers
    python scripts/plot_schedules.py --schedules sqrt,points --points 0=0.9999,0.3=0.5,1=0.0001
    python scripts/plot_schedules.py --checkpoint checkpoint_last.pt         # the one that a model was trained with

Of a checkpoint whose schedule is adaptive, some positions are shown, and the schedule that all of them started from.
"""

import argparse
import dataclasses
import itertools
from collections.abc import Sequence
from types import SimpleNamespace

import _environment  # noqa: F401  says what this Python lacks
import torch
from fairseq import checkpoint_utils
from torch import Tensor

import diffusion_fairseq  # noqa: F401  mends how the host loads checkpoints, shows errors in one line
from diffusion_fairseq.diffusion.adaptive import AdaptiveSchedule
from diffusion_fairseq.diffusion.schedules import BETAS, POINTS, build_schedule
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.config import DiffusionModelConfig
from diffusion_fairseq.models.noise import model_schedule

COLOURS = ("#1f6fb4", "#d9541e", "#2a8a4a", "#7b4ea3", "#8c6d1f", "#444444", "#c23b7a", "#d9a400")
PANELS = ("alpha-bar", "log-SNR", "beta")
Curves = dict[str, Tensor]


def named_curves(names: Sequence[str], num_timesteps: int, gamma: float | None, points: str | None) -> Curves:
    """Name -> alpha-bar (T,).

    Raises:
        UserError: a name or a number that gives no schedule.
    """
    try:
        return {
            name: build_schedule(
                name, num_timesteps, gamma, points if name == POINTS else None
            ).alphas_cumprod
            for name in names
        }
    except ValueError as error:
        raise UserError(str(error)) from error


def shown_positions(count: int) -> list[int]:
    """0, 1, 3, 7 ... and the last of `count` positions: texts differ most at their beginning."""
    doubling = itertools.takewhile(lambda i: i < count - 1, ((1 << n) - 1 for n in itertools.count()))
    return [*doubling, count - 1]


def checkpoint_curves(path: str) -> Curves:
    """Label -> alpha-bar (T,) of the schedule that a checkpoint holds.

    Raises:
        UserError: no checkpoint of a diffusion model.
    """
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    defaults = {field.name: field.default for field in dataclasses.fields(DiffusionModelConfig)}
    options = state["cfg"]["model"] if state.get("cfg") else {}
    if "noise_schedule" not in options:
        raise UserError(f"{path} holds no diffusion model")
    cfg = SimpleNamespace(**{**defaults, **options})
    schedule = model_schedule(cfg)
    if not isinstance(schedule, AdaptiveSchedule):
        return {cfg.noise_schedule: schedule.alphas_cumprod}
    prefix = "schedule."
    tables = {k.removeprefix(prefix): v for k, v in state["model"].items() if k.startswith(prefix)}
    start = schedule.log_snr[0].sigmoid()
    try:
        schedule.load_state_dict(tables)
    except RuntimeError:
        raise UserError(f"{path} lacks its adaptive noise schedule") from None
    moved = {
        f"position {position}": schedule.log_snr[position].sigmoid()
        for position in shown_positions(len(schedule.log_snr))
    }
    return {f"start: {cfg.noise_schedule}": start, **moved}


def panel_values(alpha_bar: Tensor) -> tuple[Tensor, ...]:
    """What the PANELS show of alpha-bar (T,)."""
    return alpha_bar, alpha_bar.logit(), 1 - alpha_bar / torch.cat([torch.ones(1).double(), alpha_bar[:-1]])


def draw(curves: Curves, title: str):
    """The matplotlib Figure."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: pip install matplotlib") from None
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=13)
    panels = figure.subplots(1, len(PANELS))
    for (label, alpha_bar), colour in zip(curves.items(), itertools.cycle(COLOURS), strict=False):
        t = torch.arange(len(alpha_bar)) / len(alpha_bar)
        # above the positions that have not moved from it
        style = {"linestyle": "--", "zorder": 3} if label.startswith("start: ") else {}
        for axes, values in zip(panels, panel_values(alpha_bar), strict=True):
            axes.plot(t.tolist(), values.tolist(), color=colour, linewidth=1.4, label=label, **style)
    for axes, name in zip(panels, PANELS, strict=True):
        axes.set_title(name, loc="left", fontweight="bold", fontsize=11)
        axes.set_xlabel("t / T")
        axes.grid(True, linewidth=0.5, alpha=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].set_ylabel("log(alpha-bar / (1 - alpha-bar)), nats")
    panels[2].set_yscale("log")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--schedules", metavar="A,B", help=f"of {', '.join(BETAS)}, {POINTS} (default: all, or the checkpoint's)"
    )
    parser.add_argument(
        "--timesteps", type=int, default=2000, metavar="T", help="of the named ones (default: %(default)s)"
    )
    parser.add_argument("--gamma", type=float, help="scale of linear betas (default: 1000 / T)")
    parser.add_argument("--points", metavar="U=ALPHA-BAR,...", help=f"what {POINTS} is drawn through")
    parser.add_argument("--checkpoint", metavar="FILE", help="the schedule that this model was trained with")
    parser.add_argument("--output", default="schedules.png", metavar="FILE", help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    names = [] if args.checkpoint else [*BETAS, *([POINTS] if args.points else [])]
    if args.schedules:
        names = [name.strip() for name in args.schedules.split(",")]
    if args.points and POINTS not in names:
        raise UserError(f"--points belongs to the schedule {POINTS}, which --schedules does not name")
    curves = named_curves(names, args.timesteps, args.gamma, args.points)
    if args.checkpoint:
        curves.update(checkpoint_curves(args.checkpoint))
    longest = max(len(alpha_bar) for alpha_bar in curves.values())
    figure = draw(curves, f"Noise schedules, T = {longest:,}")
    try:
        figure.savefig(args.output, dpi=130)
    except (OSError, ValueError) as error:
        raise UserError(f"{args.output}: {error}") from None
    print(f"{args.output}: {', '.join(curves)}")


if __name__ == "__main__":
    main()
