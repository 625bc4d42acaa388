"""DDLMs of several noise ranges, laws of t and masks, an autoregressive transformer and real text, by what they write.

    python scripts/study_ddlm.py runs/c4/data-bin/shard0 --bpe-model runs/c4/sentencepiece.model --arch ddlm_small \\
        --t-max 5,10,20,50 --laws uniform,time-warp --scorer FOLDER --output runs/study -- \\
        --optimizer adam --lr 1e-3 --batch-size 64 --max-update 20000 --store-ema --disable-validation
    python scripts/study_ddlm.py ... --masks span,random,mixed,prefix --output runs/study -- ...
    python scripts/study_ddlm.py ... --writer gpt2 --writer EleutherAI/gpt-neo-125m --output runs/study -- ...

After "Democratized Diffusion Language Model", tables 2 (--t-max and --laws), 3 (--masks) and 5 (all measures). Every
combination is trained with score interpolation and what stands after --; so is fairseq's transformer_lm with the layers
and widths of --arch, for as many updates on the same batches (--no-transformer leaves it out). Both write for the same
prompts, drawn from a split: from nothing; after the first half of a text; by diffusion also between its first and last
quarter. With --tokens-per-sample 64 these are the paper's tasks. Trained models of others (--writer) write what the
transformer does.

Measures are those of scripts/evaluate_lm.py, which defines them (--help); "seconds" is writing all texts. Without
--scorer the n-gram perplexity stands for AR-NLL. Numbers are means over --seeds, with their standard deviation.

Writes study.json, study.txt and study.png into --output, samples.html with what all systems wrote for some prompts
(table 4), and beside each model what it wrote, by task. Interrupted, the same command goes on where it was; values,
masks, tasks and seeds may be added. Other options of sampling write anew, other scorers measure anew, and nothing is
trained again.
"""

import argparse
import shlex
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import _environment  # noqa: F401  says what this Python lacks
import torch
from _checkpoint import load_model
from _lm_evaluation import DATA
from _lm_scorer import load_scorer
from _lm_writing import (
    COLUMNS,
    KINDS,
    SCORING,
    SETTINGS,
    TASK,
    Judge,
    Prompts,
    Written,
    add_prompts,
    by_causal,
    by_diffusion,
    by_transformer,
    load_prompts,
    quality,
    sample_page,
)
from _option_types import count, decimals, listed, words
from _study import (
    add_study_options,
    by_variant,
    content_of,
    folder_of,
    forget_others,
    keep_options,
    mean_of,
    measure,
    options_of,
    parse_study,
    prepare_output,
    read_rows,
    report,
    run_study,
    train,
    write_rows,
)

from diffusion_fairseq.diffusion.solvers import SOLVERS
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics.report import text_table
from diffusion_fairseq.models.config import DDLMConfig
from diffusion_fairseq.models.presets import DDLM
from diffusion_fairseq.tasks.sampling_config import WARPED, SamplingConfig
from diffusion_fairseq.text.masking import MASKING

TRANSFORMER = "transformer_lm"
WRITER = "writer"  # the task of a model that others have trained
LAWS = ("uniform", "time-warp", "gumbel")
SAMPLING = (*SETTINGS, "solver", "steps", "warped_grid", "clamping", "top_p")


class Variant(NamedTuple):
    """What is trained: its options of fairseq-train beside those of all; t_max, law and mask of a DDLM. Of a WRITER its
    folder in place of options."""

    name: str
    task: str
    options: list[str]
    t_max: float | None = None
    law: str | None = None
    mask: str | None = None

    def writes(self, kind: str) -> bool:
        """Whether it writes for a task: from left to right no ending can be given."""
        return self.t_max is not None or kind != "inpainting"


def variants_of(arguments: argparse.Namespace) -> dict[str, Variant]:
    """The grid, and the transformer."""
    blocks = ["--tokens-per-sample", str(arguments.tokens_per_sample), "--sample-break-mode",
              arguments.sample_break_mode]
    found = []
    for t_max, law, mask in product(arguments.t_max, arguments.laws, arguments.masks):
        options = ["--arch", arguments.arch, "--criterion", "score_interpolation", "--t-max", f"{t_max:g}",
                   "--timestep-sampler", law, "--masking", mask, *blocks, *arguments.diffusion_options]
        found.append(Variant(f"t_max {t_max:g}, {law}, {mask}", TASK, options, t_max, law, mask))
    if not arguments.no_transformer:
        found.append(Variant(TRANSFORMER, "language_modeling", [
            "--arch", "transformer_lm", "--criterion", "cross_entropy", *sizes_of(arguments.arch), *blocks,
            "--max-target-positions", str(arguments.tokens_per_sample + 1), "--skip-invalid-size-inputs-valid-test",
            *arguments.transformer_options]))
    return {variant.name: variant for variant in found}


def writers_of(arguments: argparse.Namespace) -> dict[str, Variant]:
    """The models of --writer by the last names of their folders.

    Raises:
        UserError: two rows would have one name.
    """
    found = {Path(place).resolve().name: place for place in arguments.writer}
    if len(found) < len(arguments.writer) or found.keys() & {DATA, TRANSFORMER}:
        raise UserError(f"--writer {' '.join(arguments.writer)}: two rows would have one name: rename folders")
    return {name: Variant(name, WRITER, [place]) for name, place in found.items()}


def sizes_of(arch: str) -> list[str]:
    """The layers and widths of a DDLM as transformer_lm's options: narrow embeddings, and a matrix that scores tokens,
    of their own each."""
    cfg = DDLMConfig(**DDLM[arch])
    sizes = {"input-dim": cfg.latent_dim, "embed-dim": cfg.model_dim, "output-dim": cfg.model_dim,
             "ffn-embed-dim": cfg.ffn_dim, "layers": cfg.encoder_layers, "attention-heads": cfg.attention_heads}
    return [word for name, size in sizes.items() for word in (f"--decoder-{name}", str(size))]


# ---- rows

def trainings(arguments: argparse.Namespace) -> dict[str, Callable[[], dict]]:
    """What trains every variant with every seed, {"parameters"}."""
    def one(variant: Variant, seed: int) -> dict:
        checkpoint = train(arguments.data, variant.task, arguments.output / folder_of(variant.name, seed), seed,
                           [*arguments.train, *variant.options])
        weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["model"]
        return {"parameters": sum(tensor.numel() for tensor in weights.values() if tensor.is_floating_point())}

    return {folder_of(variant.name, seed): partial(one, variant, seed) for seed in range(1, arguments.seeds + 1)
            for variant in arguments.variants.values()}


def texts_of(variant: Variant, seed: int, prompts: Prompts, arguments: argparse.Namespace) -> Written:
    """What a trained model writes, kept in its folder with the options that it was written with."""
    folder = arguments.output / folder_of(variant.name, seed)
    file, options = folder / f"{prompts.kind}.json", options_of(arguments, SAMPLING)
    kept = read_rows(file)
    if kept.get("options") != options:
        checkpoint = folder / "model.pt"
        if variant.task == WRITER:
            writer = load_scorer("--writer", *variant.options, device=arguments.device)
            found = by_causal(prompts, writer, arguments.samples, arguments.top_p, seed)
        elif variant.name == TRANSFORMER:
            found = by_transformer(prompts, checkpoint, arguments.data, arguments.samples, arguments.top_p, seed)
        else:
            found = by_diffusion(prompts, load_model(prompts.task, str(checkpoint)), SamplingConfig(
                diffusion_steps=arguments.steps, solver=arguments.solver, clamping=arguments.clamping, seed=seed,
                sampling_grid=WARPED if arguments.warped_grid and variant.law != "uniform" else "uniform",
                candidates=arguments.samples))
        kept = {"options": options, "prefixes": prompts.prefixes, **found._asdict()}
        write_rows(file, kept)
    return Written(*(kept[name] for name in Written._fields))


def measurements(arguments: argparse.Namespace, judge: Judge, prompts_of: Callable) -> dict[str, Callable[[], dict]]:
    """What makes a row for each task of each training, and of the real text."""
    def one(variant: Variant | None, seed: int, kind: str) -> dict:
        prompts = prompts_of(kind)
        found = Written([prompts.references], None, None) if variant is None else \
            texts_of(variant, seed, prompts, arguments)
        name = DATA if variant is None else variant.name
        scores, signatures = judge.scores(name, prompts, found.candidates)
        return {"variant": name, "seed": seed, "task": kind, "options": options_of(arguments, (*SAMPLING, *SCORING)),
                "scores": {**scores, "seconds": found.seconds}, "signatures": signatures}

    wanted = {f"{DATA}, {kind}": partial(one, None, 1, kind) for kind in arguments.write}
    for seed, variant, kind in product(range(1, arguments.seeds + 1), arguments.systems.values(), arguments.write):
        if variant.writes(kind):
            wanted[f"{folder_of(variant.name, seed)}, {kind}"] = partial(one, variant, seed, kind)
    return wanted


def samples(arguments: argparse.Namespace, prompts: Prompts) -> str:
    """The page of what is in the data, and of what every system's first seed wrote."""
    texts = {name: texts_of(variant, 1, prompts, arguments).candidates[0]
             for name, variant in arguments.systems.items() if variant.writes(prompts.kind)}
    return sample_page(prompts, {DATA: prompts.references, **texts})


def sampled_by(arguments: argparse.Namespace) -> str:
    """How texts were drawn, in words."""
    grid = f"{WARPED} where a law of t was learned, else uniform" if arguments.warped_grid else "uniform"
    clamping = "clamped" if arguments.clamping else "not clamped"
    return (f"{arguments.solver}, {arguments.steps} steps, grid {grid}, {clamping}; token by token with top-p "
            f"{arguments.top_p:g}")


# ---- all together

def by_task(rows: dict[str, dict], names: list[str]) -> dict[str, dict[str, list[dict]]]:
    """The rows by task and variant, the variants in the order of `names`."""
    found = {}
    for kind in KINDS:
        variants = by_variant({name: row for name, row in rows.items() if row["task"] == kind})
        if variants:
            found[kind] = {name: variants[name] for name in names if name in variants}
    return found


def tables(tasks: dict[str, dict[str, list[dict]]], millions: dict[str, float]) -> str:
    """A table for each task, a line for each variant with its parameters, the columns that some of them have."""
    said = []
    for kind, variants in tasks.items():
        lines = {}
        for name, rows in variants.items():
            found = {key: [row["scores"].get(key) for row in rows] for key in COLUMNS}
            lines[name] = {title: mean_of([value for value in found[key] if value is not None], digits)
                           for key, (title, digits) in COLUMNS.items()}
            lines[name]["parameters M"] = f"{millions[name]:.1f}" if name in millions else None
        columns = [title for title in next(iter(lines.values())) if any(line[title] for line in lines.values())]
        said.append(f"{kind}\n\n{text_table(lines, columns)}")
    return "\n\n".join(said)


def plot(tasks: dict[str, dict[str, list[dict]]], variants: dict[str, Variant], _, file: Path) -> None:
    """For each task the likelihood over t_max, and over dist-1 what is likely and what varied; a point a training."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(tasks), 2, figsize=(13, 4.2 * len(tasks)), layout="constrained", squeeze=False)
    for (kind, found), (over_range, over_variety) in zip(tasks.items(), axes):
        measured = quality(next(iter(found.values()))[0]["scores"])
        curves = {}
        for name, rows in found.items():
            # Texts without a word have no likelihood.
            points = [(row["scores"]["dist1"], row["scores"][measured]) for row in rows if row["scores"][measured]]
            if not points:
                continue
            marker = "o" if name in variants and variants[name].t_max is not None else "*"
            over_variety.plot(*zip(*points), linestyle="", label=name, marker=marker)
            if name in variants and variants[name].t_max is not None:
                key = f"{variants[name].law}, {variants[name].mask}"
                curves.setdefault(key, []).extend((variants[name].t_max, value) for _, value in points)
            else:
                colour = over_variety.lines[-1].get_color()
                over_range.axhline(points[0][1], color=colour, linestyle="--", linewidth=1, label=name)
        for name, points in curves.items():
            over_range.plot(*zip(*sorted(points)), "o-", markersize=4, label=name)
        over_range.set(xscale="log", xlabel="t_max", title=kind)
        over_variety.set(xlabel="dist-1 %", title=kind)
        for axis in (over_range, over_variety):
            axis.set(yscale="log" if measured == "perplexity" else "linear", ylabel=COLUMNS[measured][0])
            axis.grid(alpha=0.3)
            axis.legend(fontsize=7)
    figure.savefig(file, dpi=130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="binarised text as fairseq-train takes it, shards with : between")
    parser.add_argument("--arch", choices=DDLM, default="ddlm_small", help="sizes (default: %(default)s)")
    parser.add_argument("--t-max", type=decimals, default="10", metavar="X,Y", help="default: %(default)s")
    parser.add_argument("--laws", type=listed(LAWS), default="uniform", metavar="A,B",
                        help=f"laws of t: {', '.join(LAWS)} (default: %(default)s)")
    parser.add_argument("--masks", type=listed(MASKING), default="span", metavar="A,B",
                        help=f"--masking of the trainings: {', '.join(MASKING)} (default: %(default)s)")
    parser.add_argument("--write", type=listed(KINDS), default=",".join(KINDS), metavar="A,B",
                        help="what is written (default: %(default)s)")
    parser.add_argument("--diffusion-options", type=words, default="", metavar="OPTIONS",
                        help="further options of fairseq-train for the DDLMs alone, such as '--rotary --t-min 1'")
    parser.add_argument("--transformer-options", type=words, default="", metavar="OPTIONS",
                        help="the same for the transformer alone, such as '--lr 5e-4'")
    parser.add_argument("--no-transformer", action="store_true", help="leave the transformer out")
    parser.add_argument("--writer", action="append", default=[], metavar="FOLDER",
                        help="a further row: a causal language model of transformers, a folder or a name on the hub, "
                             "that writes as many tokens of its own as are asked for of the others; repeatable (paper: "
                             "GPT-2, GPT-Neo)")
    add_study_options(parser, "of each model")
    add_prompts(parser)
    parser.add_argument("--solver", choices=SOLVERS, default="euler", help="default: %(default)s")
    parser.add_argument("--steps", type=count(1), default=50, help="reverse steps (default: %(default)s)")
    parser.add_argument("--warped-grid", action="store_true",
                        help="space the steps as training drew t where a law was learned, time-warp or gumbel (CDCD), "
                             "in place of evenly")
    parser.add_argument("--clamping", action="store_true", help="clamp estimates to embeddings")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P",
                        help="what writes token by token draws among the likeliest with this much probability "
                             "(default: %(default)s, all)")
    arguments = parse_study(parser)
    if not 0 < arguments.top_p <= 1:
        parser.error("--top-p must be above 0 and at most 1")
    if len(set(arguments.t_max)) < len(arguments.t_max):
        parser.error("--t-max names a value twice")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    shards = [Path(folder) for folder in arguments.data.split(":") if folder]
    if missing := [str(folder) for folder in shards if not folder.is_dir()]:
        raise UserError(f"no folder {', '.join(missing)}: make it with scripts/prepare_corpus.py or prepare_lines.py")
    arguments.data = ":".join(str(folder.resolve()) for folder in shards)
    prepare_output(arguments)
    arguments.variants = variants_of(arguments)
    arguments.systems = {**arguments.variants, **writers_of(arguments)}
    keep_options(arguments.output, {"train": arguments.train, "data": arguments.data, **content_of(*shards)},
                 {name: shlex.join(variant.options) for name, variant in arguments.systems.items()})
    judge = Judge(arguments)
    for place in arguments.writer:  # before days of training
        load_scorer("--writer", place, device=arguments.device)
    prompts_of = cache(partial(load_prompts, arguments))
    trained = measure(trainings(arguments), arguments.output / "trainings.json", arguments.jobs)
    file = arguments.output / "study.json"
    forget_others(file, options_of(arguments, (*SAMPLING, *SCORING)))
    rows = measure(measurements(arguments, judge, prompts_of), file, 1)
    tasks = by_task(rows, [DATA, TRANSFORMER, *arguments.systems])
    millions = {name: trained[folder_of(name, 1)]["parameters"] / 1e6 for name in arguments.variants}
    data = rows[f"{DATA}, {arguments.write[0]}"]
    said = (f"{tables(tasks, millions)}\n\n{data['scores']['texts']} prompts of {arguments.subset}, "
            f"{arguments.samples} text(s) each, {arguments.seeds} seed(s)\nsampling: {sampled_by(arguments)}\n"
            + "".join(f"{name}: {text}\n" for name, text in data["signatures"].items())
            + f"every training: {shlex.join(arguments.train)}\n")
    report(arguments.output / "study", rows, said, partial(plot, tasks, arguments.variants))
    shown = "prefix" if "prefix" in arguments.write else arguments.write[0]
    (arguments.output / "samples.html").write_text(samples(arguments, prompts_of(shown)), encoding="utf-8")


if __name__ == "__main__":
    run_study(main)
