#!/usr/bin/env python3
"""How evenly a learned law of t spreads the loss: linear fits of the loss over u = F(t), as a table and a picture.

    python scripts/analyse_times.py lm-bin --path ddlm.pt --task diffusion_lm --subset valid

The loss is the cross-entropy of the tokens at the noised positions of the first texts, at --levels times evenly spaced
in log t. For the uniform law and for both learned ones, which are fitted to the same losses of training
(--timestep-sampler time-warp or gumbel), the loss at t = F^-1(u) is fitted by a straight line: R2, and the greatest
distance from the line as a share of the loss's range. Writes .json and .png.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Dict, NamedTuple

import _environment  # noqa: F401  says what this Python lacks
import torch
from _checkpoint import add_arguments, batches, load
from _option_types import count
from _study import named, write_rows
from torch import Tensor
from tqdm import tqdm

from diffusion_fairseq.diffusion.adaptive import interpolate
from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.diffusion.time_laws import FittedTimes
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics.report import text_table
from diffusion_fairseq.models.training_pass import Objective

LAWS = ("uniform", "time-warp", "gumbel")
COLUMNS = ("R2", "off the line", "median t")
U = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)


class Fit(NamedTuple):
    """A line through points: its values there (n,), the share of the variance that it explains, and the greatest
    distance from it as a share of the range."""

    line: Tensor
    r2: float
    off: float


def linear_fit(x: Tensor, y: Tensor) -> Fit:
    """The line of least squares through (x, y), both (n,) float64."""
    design = torch.stack([x, torch.ones_like(x)], dim=1)
    line = (design @ torch.linalg.lstsq(design, y[:, None]).solution)[:, 0]
    left = (y - line).square().sum() / (y - y.mean()).square().sum()
    return Fit(line, 1 - left.item(), ((y - line).abs().max() / (y.max() - y.min())).item())


def losses(task, model, times: Tensor, arguments: argparse.Namespace) -> Tensor:
    """The cross-entropy in nats a token at each of the times (n,), float64."""
    device = next(model.parameters()).device
    draws = Draws(torch.Generator(device).manual_seed(arguments.seed))
    objective = Objective(rounding=False, anchor=True)
    found = batches(task.dataset(arguments.subset), arguments.batch_size, arguments.texts)
    sums, count = torch.zeros(len(times), dtype=torch.float64), 0
    for batch in tqdm(found, unit=" batches"):
        source, target = (tokens.to(device) for tokens in (batch["net_input"]["src_tokens"], batch["target"]))
        for place, t in enumerate(times):
            with torch.inference_mode():
                parts = model(source, target, t.expand(len(target)).to(device), draws=draws, objective=objective)
            sums[place] += float((parts.anchor_nll.double() * parts.counts).sum())
        count += int(parts.counts.sum())
    return sums / count


def learned_law(model) -> FittedTimes:
    """The law of a continuous t that a model has learned.

    Raises:
        UserError: it has learned none.
    """
    law = getattr(model, "timesteps", None)
    if not isinstance(law, FittedTimes):
        raise UserError("the checkpoint has learned no law of t: give one that was trained with --criterion "
                        "score_interpolation --timestep-sampler time-warp or gumbel")
    return law


def analyse(model, times: Tensor, loss: Tensor) -> Dict[str, Dict]:
    """Of each law its fit, its median, and the curve of the loss over U."""
    rows = {}
    for name in LAWS[1:] + LAWS[:1]:  # a learned law hands its losses on to the next learned one
        law = model.timestep_sampler(name).cpu()
        t = law.quantile(U)
        over_u = interpolate(t.log()[None], times.log()[None], loss[None])[0]
        fit = linear_fit(U, over_u)
        rows[name] = {"R2": fit.r2, "off the line": fit.off, "median t": law.quantile(torch.tensor(0.5)).item(),
                      "loss": over_u.tolist(), "line": fit.line.tolist()}
    return {name: rows[name] for name in LAWS}


def plot(rows: Dict[str, Dict], times: Tensor, loss: Tensor, file: Path) -> None:
    """The loss over t, and over u by each law with its line."""
    from matplotlib import pyplot

    figure, (first, second) = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    first.plot(times, loss, marker=".")
    first.set(xscale="log", xlabel="t", ylabel="cross-entropy, nats a token")
    for name, row in rows.items():
        curve, = second.plot(U, row["loss"], label=f"{name}: R2 {row['R2']:.3f}")
        second.plot(U, row["line"], linestyle="--", linewidth=0.8, color=curve.get_color())
    second.set(xlabel="u = F(t)")
    second.legend()
    for axis in (first, second):
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--texts", type=count(1), default=256,
                        help="the first so many texts of the split (default: 256)")
    parser.add_argument("--levels", type=count(3), default=40, help="times at which the loss is measured (default: 40)")
    parser.add_argument("--output", type=Path, default=Path("times"), help="files to write, without ending")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    logging.disable(logging.INFO)  # of fairseq; warnings stay
    task, model = load(arguments)
    law = learned_law(model)
    times = torch.logspace(*torch.tensor([law.t_min, law.t_max]).log10().tolist(), arguments.levels,
                           dtype=torch.float64)
    loss = losses(task, model, times, arguments)
    rows = analyse(model, times, loss)
    write_rows(named(arguments.output, ".json"),
               {"t": times.tolist(), "loss": loss.tolist(), "u": U.tolist(), "laws": rows})
    plot(rows, times, loss, named(arguments.output, ".png"))
    print(text_table(rows, COLUMNS, digits=3))
    print(f"\nloss over u = F(t), {min(arguments.texts, len(task.dataset(arguments.subset)))} texts of "
          f"{arguments.subset}, {arguments.levels} times")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
