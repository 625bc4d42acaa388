#!/usr/bin/env python3
"""What happens while text is denoised: switches, confidence, norms and directions over the steps, in one picture.

    python scripts/analyse_sampling.py lm-bin --path ddlm.pt --task diffusion_lm --diffusion-steps 200 --solver euler
    python scripts/analyse_sampling.py data-bin --path genie.pt --diffusion-steps 100 --clamping --texts 64

After "Democratized Diffusion Language Model", figures 1 to 3: the share of tokens that switched since the step before;
the entropy of p(x_0 | x_t, t); the L2 norms of the predicted x_0 and of x_t; the cosines between the score and the last
score, and between x_t and the last x_t. --initial-noise-scales draws a line for each scale, --later for each of several
checkpoints (figure 1, top). Of a checkpoint that keeps averaged weights (--store-ema) these are taken, of others their
own: what is printed says which. Writes .json and .png, and prints some of the steps.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Dict, List, Tuple

import _environment  # noqa: F401  says what this Python lacks
import torch
import torch.nn.functional as F
from _checkpoint import add_arguments, add_sampling_arguments, batches, load, load_model, sampling_config
from _option_types import count, decimals
from _study import named, write_rows
from export_checkpoint import EMA_KEYS, ema_weights, warn_of_starting_weights
from fairseq import checkpoint_utils
from tqdm import tqdm

from diffusion_fairseq.denoiser import Rows, aligned
from diffusion_fairseq.diffusion.process import score_from_x0
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.metrics.report import text_table
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.tasks.sampling_config import SamplingConfig

CURVES = {
    "switches": "share of tokens that switched", "entropy": "entropy of p(x0 | xt, t), nats",
    "pred_x0_norm": "norm of the predicted x0", "xt_norm": "norm of xt",
    "score_cosine": "cosine of score and last score", "xt_cosine": "cosine of xt and last xt",
}
PRINTED = (0, 0.25, 0.5, 0.75, 0.875, 0.95, 1)  # shares of the way through the steps


def take_averaged(model: torch.nn.Module, path: str) -> str:
    """Give a checkpoint's model the averaged weights, where the file keeps them; returns which weights it has."""
    state = checkpoint_utils.load_checkpoint_to_cpu(path)
    if not any(state["extra_state"].get(key) for key in EMA_KEYS):
        return "its own weights"
    warn_of_starting_weights(state, path)
    model.load_state_dict(ema_weights(state, path))
    return "averaged weights (EMA)"


def trace(generator: DiffusionGenerator, rows: Rows) -> Tuple[Dict[str, List[float]], int]:
    """Each curve's sum over the generated positions after every step, and their count."""
    generated = rows.generated
    packing, count = Packing.of(generated), int(generated.sum())
    states, found = [], {name: [] for name in CURVES}
    tokens = None
    for denoise, before, state in generator.trajectory(rows):
        tokens_before, tokens = tokens, denoise.tokens(state.pred_x0)[generated]
        found["switches"].append(0.0 if tokens_before is None else float((tokens != tokens_before).sum()))
        found["entropy"].append(float(denoise.entropy(packing)[:count].sum()))
        found["pred_x0_norm"].append(float(state.pred_x0[generated].norm(dim=-1).sum()))
        found["xt_norm"].append(float(state.xt[generated].norm(dim=-1).sum()))
        score = score_from_x0(before.xt, state.pred_x0, before.level)
        states.append((score[generated], state.xt[generated]))
    for name, which in (("score_cosine", 0), ("xt_cosine", 1)):
        last = states[-1][which]
        found[name] = [float(F.cosine_similarity(one[which], last, dim=-1).sum()) for one in states]
    return found, count


def analyse(task, model, sampling: SamplingConfig, arguments: argparse.Namespace) -> Dict[str, List[float]]:
    """Each curve's mean over the generated positions of the first texts."""
    generator = DiffusionGenerator(model, task.target_dictionary, sampling)
    device = next(model.parameters()).device
    sums, count = None, 0
    for batch in tqdm(batches(task.dataset(arguments.subset), arguments.batch_size, arguments.texts), unit=" batches"):
        source = batch["net_input"]["src_tokens"].to(device)
        source = F.pad(source, (0, aligned(source.size(1)) - source.size(1)), value=model.pad)
        with torch.inference_mode():
            for _, rows in generator.buckets(model.encode(source), source, batch["id"] if model.numbered else None):
                found, generated = trace(generator, rows)
                count += generated
                sums = found if sums is None else {
                    name: [a + b for a, b in zip(sums[name], found[name])] for name in CURVES}
    if not count:
        raise UserError(f"{arguments.subset}: all positions are given, and none is generated")
    return {name: [value / count for value in values] for name, values in sums.items()}


def table(curves: Dict[str, Dict[str, List[float]]], title_of_lines: str) -> str:
    """The curves at PRINTED steps of each line, from the first to the last."""
    rows = {}
    for label, found in curves.items():
        last = len(found["switches"]) - 1
        for step in sorted({round(last * share) for share in PRINTED}):
            rows[f"{title_of_lines} {label}, step {step + 1}"] = {
                title: found[name][step] for name, title in CURVES.items()}
    return text_table(rows, list(CURVES.values()), digits=3)


def plot(curves: Dict[str, Dict[str, List[float]]], title_of_lines: str, file: Path) -> None:
    """A panel for each curve, a line for each setting."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(14, 7), layout="constrained")
    for axis, (name, title) in zip(axes.T.flat, CURVES.items()):
        for label, found in curves.items():
            axis.plot(range(1, len(found[name]) + 1), found[name], label=label)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    if len(curves) > 1:
        axes.flat[0].legend(title=title_of_lines)
    figure.savefig(file, dpi=130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--texts", type=count(1), default=128,
                        help="the first so many texts of the split (default: 128)")
    add_sampling_arguments(parser, steps=100)
    parser.add_argument("--initial-noise-scales", type=decimals, default=[1.0], metavar="A,B", help="default: 1")
    parser.add_argument("--later", nargs="+", default=[], metavar="FILE",
                        help="further checkpoints of the same training, as --save-interval-updates wrote them")
    parser.add_argument("--output", type=Path, default=Path("sampling"), help="files to write, without ending")
    arguments = parser.parse_args()
    if arguments.solver == "heun":
        parser.error("--solver heun evaluates at two levels a step, and a curve here is of one: choose another")
    if arguments.later and len(arguments.initial_noise_scales) > 1:
        parser.error("--later and several --initial-noise-scales: a picture shows one of the two")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.disable(logging.INFO)  # of fairseq; warnings stay
    task, model = load(arguments)
    curves, weights = {}, {arguments.path: take_averaged(model, arguments.path)}
    for scale in arguments.initial_noise_scales:
        sampling = sampling_config(arguments, initial_noise_scale=scale)
        curves[f"{scale:g}"] = analyse(task, model, sampling, arguments)
    if arguments.later:
        curves = {arguments.path: curves.popitem()[1]}
        for path in arguments.later:
            model = load_model(task, path)
            weights[path] = take_averaged(model, path)
            curves[path] = analyse(task, model, sampling, arguments)
    write_rows(named(arguments.output, ".json"), curves)
    lines = "checkpoint" if arguments.later else "initial noise scale"
    plot(curves, lines, named(arguments.output, ".png"))
    said = "".join(f"{path}: {which}\n" for path, which in weights.items())
    print(f"{table(curves, lines)}\n\n{said}{named(arguments.output, '.png')}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
