"""Likelihood and variety of a language model's texts against steps and seconds, for early exit, noise scales, solvers.

    python scripts/study_lm_sampling.py data-bin --path ddlm.pt --bpe-model sentencepiece.model --scorer FOLDER \\
        --steps 50,200 --patience 0,5,10,25 --output patience
    python scripts/study_lm_sampling.py data-bin --path ddlm.pt --bpe-model sentencepiece.model --scorer FOLDER \\
        --noise-scales 0.5,0.8,0.9,1,1.1,1.2 --output noise

After "Democratized Diffusion Language Model", figure 1 (early exit) and table 8 (scale of the noise that generation
starts from). Beside every setting with early exit stands one without, that takes as many steps as this one's mean.
Prompts, measures and the row "data" are those of scripts/study_ddlm.py; "steps" are those that were taken, the mean
over texts, and seconds are of generation alone. scripts/study_sampling.py is the same for models that have references.

Writes .json, .txt and .png. Interrupted, it goes on where it was: what the .json holds is not measured again. Other
texts or measures need another --output.
"""

import argparse
from pathlib import Path

import _environment  # noqa: F401  says what this Python lacks
from _checkpoint import load_model
from _lm_evaluation import DATA
from _lm_writing import (
    COLUMNS,
    KINDS,
    SCORING,
    SETTINGS,
    Judge,
    Prompts,
    add_prompts,
    by_diffusion,
    load_prompts,
    quality,
)
from _study import mean_of, named, options_of, read_rows, refuse_others, report, run_study, take_turns, write_rows
from study_sampling import add_settings, curve_of, name_of, settings_of

from diffusion_fairseq.metrics.report import text_table
from diffusion_fairseq.tasks.sampling_config import SamplingConfig

AXES = {"diffusion_steps": "steps at most", "steps": "steps taken", "seconds": "seconds", "dist1": "dist-1 %"}
OPTIONS = (*SETTINGS, *SCORING, "write", "data", "path")


def plain(setting: dict, steps: float) -> dict:
    """A setting without early exit that takes as many steps as another one with it, on the mean."""
    return {**setting, "exit_patience": None, "exit_entropy": None, "diffusion_steps": max(1, round(steps))}


def table(rows: dict[str, dict]) -> str:
    """A line a setting; means over seeds with their standard deviation, and the median of the seconds."""
    titles = {"steps": ("steps", 1), **COLUMNS}
    lines = {}
    for name, row in rows.items():
        cells = {title: mean_of([one[key] for one in row["seeds"] if one.get(key) is not None], digits)
                 for key, (title, digits) in titles.items()}
        if row["seconds"] is not None:
            cells["seconds"] = f"{row['seconds']:.{titles['seconds'][1]}f}"
        lines[name] = cells
    columns = [title for title, _ in titles.values() if any(line[title] for line in lines.values())]
    return text_table(lines, columns)


def plot(rows: dict[str, dict], file: Path) -> None:
    """Likelihood over steps that were allowed and taken, over seconds and variety: a curve for each setting but its
    number of steps; the real text dashed."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(AXES), figsize=(17, 4.5), sharey=True, layout="constrained")
    measured = quality(rows[DATA])
    curves: dict[str, list[dict]] = {}
    for name, row in rows.items():
        if name != DATA:  # texts without a word have no likelihood
            curves.setdefault(curve_of(row), []).append(row)
    for axis, (key, title) in zip(axes, AXES.items()):
        for place, (label, found) in enumerate(curves.items()):
            points = sorted((row[key], row[measured]) for row in found if row[measured])
            axis.plot([x for x, _ in points], [y for _, y in points], label=label, marker="osv^D"[place // 10 % 5],
                      markersize=4, linewidth=1)
        axis.axhline(rows[DATA][measured], color="grey", linestyle="--", linewidth=1)
        axis.set(xlabel=title, yscale="log" if measured == "perplexity" else "linear")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(COLUMNS[measured][0])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(file, dpi=130)


def data_row(prompts: Prompts, judge: Judge, options: dict, file: Path) -> dict:
    """The measures of the real texts, kept in the file."""
    rows = read_rows(file)
    if DATA not in rows:
        scores, signatures = judge.scores(DATA, prompts, [prompts.references])
        rows[DATA] = {"options": options, **scores, "seconds": None, "seeds": [scores], "signatures": signatures}
        write_rows(file, rows)
    return rows[DATA]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="binarised text")
    parser.add_argument("--path", required=True, metavar="FILE", help="checkpoint of a model of --task diffusion_lm")
    parser.add_argument("--output", type=Path, default=Path("study-lm"), help="files to write, without ending")
    parser.add_argument("--write", choices=KINDS, default=KINDS[0],
                        help="text from nothing, after the first half of a text, or between its first and last quarter "
                             "(default: %(default)s)")
    add_settings(parser)
    add_prompts(parser)
    parser.set_defaults(solvers="euler", grids="uniform", clamping="off", steps="50")
    return parser.parse_args()


def options_read(arguments: argparse.Namespace) -> dict:
    """What a row was measured with; the index stands for the training text, which may be large."""
    read = (f"{arguments.subset}.*", "dict.txt", *(["train.idx"] if arguments.ngram_lines else []))
    return options_of(arguments, OPTIONS, {"data": read})


def main() -> None:
    arguments = parse_arguments()
    prompts = load_prompts(arguments, arguments.write)
    model, judge = load_model(prompts.task, arguments.path), Judge(arguments)
    options = options_read(arguments)
    file = named(arguments.output, ".json")
    refuse_others(file, read_rows(file), options)

    def write(setting: dict, seed: int) -> dict[str, float | None]:
        found = by_diffusion(prompts, model, SamplingConfig(**setting, candidates=arguments.samples, seed=seed))
        scores, _ = judge.scores("model", prompts, found.candidates)
        return {**scores, "seconds": found.seconds, "steps": found.steps}

    def tried(settings: list[dict]) -> dict[str, dict]:
        return take_turns({name_of(setting): setting for setting in settings}, write, arguments.seeds, file, options)

    data = data_row(prompts, judge, options, file)
    settings = settings_of(arguments)
    rows = tried(settings)
    exits = [plain(setting, rows[name_of(setting)]["steps"]) for setting in settings if setting["exit_patience"]]
    rows = {DATA: data, **rows, **tried(exits)}
    said = (f"{table(rows)}\n\n{arguments.write}: {data['texts']} prompts of {arguments.subset}, {arguments.samples} "
            f"text(s) each, {arguments.seeds} seed(s)\n"
            + "".join(f"{name}: {text}\n" for name, text in data["signatures"].items()))
    report(arguments.output, rows, said, plot)


if __name__ == "__main__":
    run_study(main)
