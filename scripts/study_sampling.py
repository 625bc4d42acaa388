"""Quality against steps and seconds of a checkpoint, for every solver and grid; recommends a setting.

    python scripts/study_sampling.py data-bin --path checkpoint.pt --bpe-model sentencepiece.model --output study
    python scripts/study_sampling.py data-bin --path checkpoint.pt --solvers ddim,heun --grids uniform --steps 5,20
    python scripts/study_sampling.py data-bin --path checkpoint.pt --solvers ddpm --grids uniform --clamping on \\
        --steps 100,250,500,1000,2000 --published-stride --ddpm-variance beta --candidates 5 --oracle rouge2

The last command is GENIE's figure 2, the interval between steps (20, 8, 4, 2, 1 of 2000), best of 5 by the reference.
Of several candidates the first columns are of the one with the best model score; then come the mean over all, and the
oracle, which chooses with the reference and is a bound, not a result.

Writes study.json (every measurement), study.txt (the table and the recommended setting: the fastest whose ROUGE-L
reaches a share of the best one's) and study.png. Choose on --subset valid, and report on test. Interrupted, it goes on
where it was: what study.json holds is not measured again. Another model, other data or another split needs another
--output.
"""

import argparse
import itertools
import time
from functools import partial
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import _environment  # noqa: F401  says what this Python lacks
import _checkpoint
import numpy as np
import torch
from _evaluation import DEFAULT_ORACLE
from _option_types import count, decimals, listed, numbers
from _study import named, options_of, report, run_study, take_turns
from study_candidates import OFFERED

import diffusion_fairseq  # noqa: F401  registers the task and the models
from diffusion_fairseq.diffusion.grids import GRIDS
from diffusion_fairseq.diffusion.solvers import SOLVERS, VARIANCES
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.metrics.overlap import rouge_per_sentence
from diffusion_fairseq.metrics.report import text_table
from diffusion_fairseq.tasks.sampling_config import WARPED, SamplingConfig
from diffusion_fairseq.tasks.seq2seq_diffusion import Seq2SeqDiffusionTask
from diffusion_fairseq.text.reranking import oracle_picks

MEASURES = ("rouge1", "rouge2", "rougeL")
CHOICES = {"": "-", "mean ": ":", "oracle ": "--"}  # among several candidates: before the measures; lines of the plot
COLUMNS = (*(choice + name for choice in CHOICES for name in MEASURES), "seconds", "mean steps")
DEFAULT_VARIANCE = SamplingConfig.ddpm_variance
OPTIONS = ("data", "path", "bpe_model", "subset", "batch_size", "max_source_positions", "max_target_positions")


class Study(NamedTuple):
    """A model, the batches it is tried on (dicts as a dataset collates them), and how tokens become text."""

    model: torch.nn.Module
    task: Seq2SeqDiffusionTask
    batches: List[dict]
    bpe: object

    def text(self, tokens: torch.Tensor) -> str:
        line = self.task.target_dictionary.string(tokens)
        return self.bpe.decode(line) if self.bpe is not None else line


def load(arguments: argparse.Namespace) -> Study:
    """Load checkpoint and data.

    Raises:
        UserError: one of them cannot be used, or the split is empty.
    """
    arguments.task, arguments.given_positions, arguments.seed = "seq2seq_diffusion", None, 1
    task, model = _checkpoint.load(arguments)
    pairs = task.dataset(arguments.subset)
    if pairs.tgt is None or not len(pairs):
        raise UserError(f"{arguments.data}: split {arguments.subset} holds no pairs to score with")
    batches = _checkpoint.batches(pairs, arguments.batch_size, len(pairs))
    return Study(model, task, batches, _checkpoint.build_bpe(task, arguments.bpe_model))


def measure(study: Study, setting: Dict, seed: int) -> Dict[str, float]:
    """ROUGE F1 x 100, seconds of generation, and mean steps of one setting: options of SamplingConfig, and with several
    candidates what the oracle chooses by."""
    sampling = SamplingConfig(**{name: value for name, value in setting.items() if name != "oracle"}, seed=seed)
    generator = DiffusionGenerator(study.model, study.task.target_dictionary, sampling)
    device = next(study.model.parameters()).device
    hypotheses, references, seconds = [], [], 0.0
    with torch.inference_mode():
        for batch in study.batches:
            tokens = {"net_input": {"src_tokens": batch["net_input"]["src_tokens"].to(device)}}
            began = time.perf_counter()
            found = generator.generate([study.model], tokens)
            seconds += time.perf_counter() - began
            hypotheses += [[study.text(one["tokens"]) for one in candidates] for candidates in found]
            targets = (row[row != study.task.target_dictionary.pad()] for row in batch["target"])
            references += [study.text(row) for row in targets]
    steps = generator.steps_used
    mean_steps = sum(n * count for n, count in steps.items()) / sum(steps.values())
    return {**scores(hypotheses, references, setting.get("oracle")), "seconds": seconds, "mean steps": mean_steps}


def scores(hypotheses: List[List[str]], references: List[str], oracle: Optional[str]) -> Dict[str, float]:
    """The means over sentences: of each one's first candidate and, where an oracle is named, of all its candidates and
    of the oracle's choice."""
    found = [rouge_per_sentence(texts, references, MEASURES) for texts in zip(*hypotheses)]
    each = np.array([[column[name] for name in MEASURES] for column in found]).transpose(2, 0, 1)
    means = {"": each[:, 0].mean(axis=0)}
    if oracle is not None:
        picked = oracle_picks(each, MEASURES, oracle)
        means.update({"mean ": each.mean(axis=(0, 1)), "oracle ": each[np.arange(len(each)), picked].mean(axis=0)})
    return {choice + name: float(value) for choice, mean in means.items() for name, value in zip(MEASURES, mean)}


def name_of(setting: Dict) -> str:
    patience, entropy = setting["exit_patience"], setting.get("exit_entropy")
    return (f"{setting['solver']} {setting['sampling_grid']} {setting['diffusion_steps']}"
            + (" clamped" if setting["clamping"] else "") + (f" patience {patience}" if patience else "")
            + (f" entropy {entropy:g}" if entropy else "")
            + (f" noise {setting['initial_noise_scale']:g}" if setting.get("initial_noise_scale", 1) != 1 else "")
            + (" published stride" if setting["stride_as_published"] else "")
            + (f" variance {setting['ddpm_variance']}" if "ddpm_variance" in setting else "")
            + (f" {setting['candidates']} candidates" if "candidates" in setting else "")
            + (f" oracle {setting['oracle']}" if setting.get("oracle", DEFAULT_ORACLE) != DEFAULT_ORACLE else ""))


def curve_of(setting: Dict) -> str:
    """The name of a setting without its number of steps."""
    return " ".join(name_of({**setting, "diffusion_steps": ""}).split())


def settings_of(arguments: argparse.Namespace) -> List[Dict]:
    """Every combination asked for; Heun takes half the steps, since each costs two evaluations. A variance is
    named only where it is not the default, so that rows from before the option keep their names.

    Raises:
        UserError: a variance that none of them has.
    """
    variance = {} if arguments.ddpm_variance == DEFAULT_VARIANCE else {"ddpm_variance": arguments.ddpm_variance}
    if variance and "ddpm" not in arguments.solvers:
        raise UserError("--ddpm-variance acts only with ddpm among --solvers: give both, or leave it out")
    clampings = {"both": (False, True), "on": (True,), "off": (False,)}[arguments.clamping]
    found = []
    exits = [exit for exit in itertools.product(arguments.patience, arguments.exit_entropies) if exit[0] or not exit[1]]
    for solver, grid, clamping, steps, (patience, entropy), scale in itertools.product(
            arguments.solvers, arguments.grids, clampings, arguments.steps, exits, arguments.noise_scales):
        steps = max(1, steps // 2) if solver == "heun" else steps
        found.append({"solver": solver, "sampling_grid": grid, "diffusion_steps": steps, "clamping": clamping,
                      "exit_patience": patience or None, "exit_entropy": entropy or None,
                      "initial_noise_scale": scale, "stride_as_published": False,
                      **(variance if solver == "ddpm" else {})})
    if arguments.published_stride:
        found += [{**setting, "stride_as_published": True} for setting in found
                  if setting["solver"] == "ddpm" and setting["sampling_grid"] == "uniform"]
    return found


def among(settings: List[Dict], candidates: int, oracle: str) -> List[Dict]:
    """The settings with so many candidates of each source; of several, with what the oracle chooses by."""
    return settings if candidates == 1 else [{**one, "candidates": candidates, "oracle": oracle} for one in settings]


def recommended(rows: Dict[str, Dict], share: float) -> str:
    """The fastest setting whose ROUGE-L is at least a share of the best; the oracle's counts nowhere."""
    best = max(row["rougeL"] for row in rows.values())
    return min((name for name, row in rows.items() if row["rougeL"] >= share * best), key=lambda n: rows[n]["seconds"])


def command_line(row: Dict) -> str:
    """The options of a setting as fairseq-generate takes them."""
    words = ["--solver", row["solver"], "--sampling-grid", row["sampling_grid"], "--diffusion-steps",
             str(row["diffusion_steps"])] + (["--clamping"] if row["clamping"] else [])
    words += ["--exit-patience", str(row["exit_patience"])] if row["exit_patience"] else []
    words += ["--exit-entropy", f"{row['exit_entropy']:g}"] if row.get("exit_entropy") else []
    if row.get("initial_noise_scale", 1) != 1:
        words += ["--initial-noise-scale", f"{row['initial_noise_scale']:g}"]
    for name in ("ddpm_variance", "candidates"):
        words += [f"--{name.replace('_', '-')}", str(row[name])] if name in row else []
    return " ".join(words + (["--stride-as-published"] if row["stride_as_published"] else []))


def plot(rows: Dict[str, Dict], file: Path) -> None:
    """ROUGE-L against steps and against seconds, a line for each solver, grid and clamping; of several candidates also
    their mean, dotted, and the oracle, dashed."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5), sharey=True, layout="constrained")
    curves: Dict[str, List[Dict]] = {}
    for row in rows.values():
        curves.setdefault(curve_of(row), []).append(row)
    for axis, key in zip(axes, ("mean steps", "seconds")):
        for number, (label, points) in enumerate(curves.items()):
            points = sorted(points, key=lambda row: row[key])
            for choice, line in CHOICES.items() if "oracle rougeL" in points[0] else [("", CHOICES[""])]:
                axis.plot([row[key] for row in points], [row[f"{choice}rougeL"] for row in points], line,
                          label=label + (f": {choice}".rstrip() if choice else ""), color=f"C{number}",
                          marker="osv^D"[number // 10 % 5], markersize=4, linewidth=1)
        axis.set(xscale="log", xlabel=f"{key} (log scale)", ylabel="ROUGE-L")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(file, dpi=130)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options of `settings_of`, and how often each is tried."""
    parser.add_argument("--solvers", type=listed(SOLVERS), default=",".join(SOLVERS), metavar="A,B",
                        help="default: %(default)s")
    parser.add_argument("--grids", type=listed((*GRIDS, WARPED)), default=",".join(GRIDS), metavar="A,B",
                        help=f"{', '.join(GRIDS)}, or {WARPED} for a model that has learned one (default: %(default)s)")
    parser.add_argument("--steps", type=numbers, default="5,10,20,50", metavar="N,M", help="default: %(default)s")
    parser.add_argument("--clamping", choices=("both", "on", "off"), default="both", help="default: %(default)s")
    parser.add_argument("--patience", type=numbers, default="0", metavar="N,M",
                        help="patiences of early exit to try; 0 is none (default: %(default)s)")
    parser.add_argument("--exit-entropies", type=decimals, default="0", metavar="X,Y",
                        help="entropies in nats, at most, to try beside each patience; 0 is none (default: "
                             "%(default)s)")
    parser.add_argument("--noise-scales", type=decimals, default="1", metavar="X,Y",
                        help="--initial-noise-scale of generation (default: %(default)s)")
    parser.add_argument("--published-stride", action="store_true",
                        help="also the released GENIE's stride, for ddpm on a uniform grid")
    parser.add_argument("--ddpm-variance", choices=VARIANCES, default=DEFAULT_VARIANCE,
                        help="of generation, for ddpm (default: %(default)s; the released GENIE: beta)")
    parser.add_argument("--seeds", type=count(1), default=1, help="runs that are averaged (default: %(default)s)")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder that fairseq-preprocess made")
    parser.add_argument("--path", required=True, metavar="FILE", help="checkpoint")
    parser.add_argument("--bpe-model", metavar="FILE", help="sentencepiece model that turns tokens into text")
    parser.add_argument("--subset", default="valid", help="split to generate (default: valid)")
    parser.add_argument("--output", type=Path, default=Path("study"), help="files to write, without ending")
    add_settings(parser)
    parser.add_argument("--candidates", type=count(1), default=1,
                        help="of each source; several add their mean and the oracle (default: %(default)s; GENIE's "
                             "figure 2: 5)")
    parser.add_argument("--oracle", choices=OFFERED, default=DEFAULT_ORACLE,
                        help="as in evaluate.py (default: %(default)s; GENIE: rouge2)")
    parser.add_argument("--share", type=float, default=0.99, help="of the best ROUGE-L that is good enough (0.99)")
    parser.add_argument("--batch-size", type=count(1), default=128, help="sentences at a time (default: 128)")
    parser.add_argument("--max-source-positions", type=count(1), default=512, help="default: 512")
    parser.add_argument("--max-target-positions", type=count(1), default=64, help="default: 64")
    arguments = parser.parse_args()
    if not 0 < arguments.share <= 1:
        parser.error("--share must be above 0 and at most 1")
    if arguments.candidates == 1 and arguments.oracle != DEFAULT_ORACLE:
        parser.error("--oracle chooses among several --candidates: give both, or leave it out")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    settings = among(settings_of(arguments), arguments.candidates, arguments.oracle)
    study = load(arguments)
    options = options_of(arguments, OPTIONS, {"data": (f"{arguments.subset}.*", "dict.*.txt")})
    file = named(arguments.output, ".json")
    rows = take_turns({name_of(setting): setting for setting in settings}, partial(measure, study), arguments.seeds,
                      file, options)
    choice = recommended(rows, arguments.share)
    sentences = sum(len(batch["id"]) for batch in study.batches)
    columns = [column for column in COLUMNS if column in rows[choice]]
    oracle = "" if arguments.candidates == 1 else f"; the oracle reads the reference: the highest {arguments.oracle}"
    said = (f"{text_table(rows, columns, digits=2)}\n\n{sentences} sentences of {arguments.subset}, "
            f"{arguments.seeds} seed(s); ROUGE F1 x 100{oracle}\nrecommended: {command_line(rows[choice])}\n")
    report(arguments.output, rows, said, plot)


if __name__ == "__main__":
    run_study(main)
