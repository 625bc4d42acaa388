#!/usr/bin/env python3
"""What happens while text is denoised: switches, confidence, norms and directions over the steps, in one picture.

    python scripts/analyse_sampling.py lm-bin --path ddlm.pt --task diffusion_lm --diffusion-steps 200 --solver euler
    python scripts/analyse_sampling.py data-bin --path genie.pt --diffusion-steps 100 --clamping --texts 64

After "Democratized Diffusion Language Model", figures 1 to 3: the share of tokens that switched since the step before;
the entropy of p(x_0 | x_t, t); the L2 norms of the predicted x_0 and of x_t; the cosines between the score and the last
score, and between x_t and the last x_t. --initial-noise-scales draws a line for each scale. Writes .json and .png.
"""

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Dict, List

import _environment  # noqa: F401  says what this Python lacks
import torch
import torch.nn.functional as F
from _checkpoint import add_arguments, add_sampling_arguments, batches, load, sampling_config
from _study import decimals
from tqdm import tqdm

from diffusion_fairseq.denoiser import aligned
from diffusion_fairseq.diffusion.process import score_from_x0
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.tasks.sampling_config import SamplingConfig

CURVES = {
    "switches": "share of tokens that switched", "entropy": "entropy of p(x0 | xt, t), nats",
    "pred_x0_norm": "norm of the predicted x0", "xt_norm": "norm of xt",
    "score_cosine": "cosine of score and last score", "xt_cosine": "cosine of xt and last xt",
}


def trace(generator: DiffusionGenerator, rows) -> Dict[str, List[float]]:
    """Each curve's sum over the generated positions after every step, and their count."""
    packing = rows.packing
    states, found = [], {name: [] for name in CURVES}
    tokens = None
    for denoise, before, state in generator.trajectory(rows):
        tokens_before, tokens = tokens, packing.pack(denoise.tokens(state.pred_x0))
        found["switches"].append(0.0 if tokens_before is None else float((tokens != tokens_before).sum()))
        found["entropy"].append(float(denoise.entropy(packing).sum()))
        found["pred_x0_norm"].append(float(packing.pack(state.pred_x0).norm(dim=-1).sum()))
        found["xt_norm"].append(float(packing.pack(state.xt).norm(dim=-1).sum()))
        score = score_from_x0(before.xt, state.pred_x0, before.level)
        states.append((packing.pack(score), packing.pack(state.xt)))
    for name, which in (("score_cosine", 0), ("xt_cosine", 1)):
        last = states[-1][which]
        found[name] = [float(F.cosine_similarity(one[which], last, dim=-1).sum()) for one in states]
    return found


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
                found = trace(generator, rows)
                count += len(rows.packing.pack(rows.packing.columns(device).new_zeros(rows.packing.shape)))
                sums = found if sums is None else {
                    name: [a + b for a, b in zip(sums[name], found[name])] for name in CURVES}
    return {name: [value / count for value in values] for name, values in sums.items()}


def plot(curves: Dict[str, Dict[str, List[float]]], file: Path) -> None:
    """A panel for each curve, a line for each setting."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 3, figsize=(14, 7), layout="constrained")
    for axis, (name, title) in zip(axes.T.flat, CURVES.items()):
        for label, found in curves.items():
            axis.plot(range(1, len(found[name]) + 1), found[name], label=label)
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
    if len(curves) > 1:
        axes.flat[0].legend(title="initial noise scale")
    figure.savefig(file, dpi=130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--texts", type=int, default=128, help="the first so many texts of the split (default: 128)")
    add_sampling_arguments(parser, steps=100)
    parser.add_argument("--initial-noise-scales", type=decimals, default=[1.0], metavar="A,B", help="default: 1")
    parser.add_argument("--output", type=Path, default=Path("sampling"), help="files to write, without ending")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    logging.disable(logging.INFO)  # of fairseq and matplotlib; warnings stay
    task, model = load(arguments)
    curves = {}
    for scale in arguments.initial_noise_scales:
        sampling = sampling_config(arguments, initial_noise_scale=scale)
        curves[f"{scale:g}"] = analyse(task, model, sampling, arguments)
    arguments.output.with_suffix(".json").write_text(json.dumps(curves, indent=1), encoding="utf-8")
    plot(curves, arguments.output.with_suffix(".png"))
    print(f"{arguments.output.with_suffix('.png')}: {', '.join(CURVES)}")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
