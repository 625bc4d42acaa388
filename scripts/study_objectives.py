"""Trainings that differ in named options alone, compared: how fast they learn, at equal noise, and by what they write.

    python scripts/study_objectives.py runs/reuters --variants schedules --output runs/schedules -- \\
        --arch diffusion_lm_small --criterion diffusion_anchor --optimizer adam --lr 5e-4 --batch-size 64 \\
        --max-update 10000 --validate-interval-updates 500
    python scripts/study_objectives.py runs/reuters --variant "cold=--lr 1e-4" --variant "hot=--lr 1e-3" ...

DIR holds data-bin/, and text/ with train.txt and test.txt: scripts/prepare_lines.py makes both. What stands after --
goes to every fairseq-train, a variant's options behind it. Sets of variants: schedules, the noise schedules of
"Stabilizing Diffusion LMs" (figure 3; its piece-wise linear one in both forms), and losses, rounding against anchor
(table 1) and what stands between them.

valid         the last validation of the training, as in its log: of the weights themselves, where all else is of the
              averaged ones if there is --store-ema. Its mse and accuracy are means over the variant's own noise
              levels, and the mse is in units of its own embeddings: comparable over one variant's updates only
log-SNR       mse and accuracy with all positions at one noise level, the trained one next to it, from clean embeddings
              on; "mse" here is a share of the embeddings' variance. At the schedule's log(alpha^2 / sigma^2), where
              a loss that makes embeddings larger makes its own task easier; and at that of the embeddings themselves,
              log(variance alpha^2 / sigma^2), where all have the same task
texts         one from nothing for each of text/test.txt, as long as it: perplexity and unknown words of a 3-gram model
              of text/train.txt, and dist-n; --steps 0 leaves them out. Without DIR/sentencepiece.model all real text is
              read as the variants read it, with <unk> for what data-bin/dict.txt does not have

Numbers are means over --seeds, with their standard deviation. Writes study.json, study.txt and study.png into --output.
Interrupted, the same command goes on where it was; variants and seeds may be added.
"""

import argparse
import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import NamedTuple

import _environment  # noqa: F401  says what this Python lacks
import torch
from _checkpoint import batches, load
from _generated import read_generated, read_lines
from _lm_evaluation import DATA, NGrams, as_known, read_ngrams, read_words
from _option_types import count, numbers, words
from _study import (
    add_study_options,
    by_variant,
    content_of,
    draw_bands,
    folder_of,
    forget_others,
    generate,
    keep_options,
    mean_of,
    measure,
    options_of,
    parse_study,
    prepare_output,
    report,
    run_study,
    train,
)
from plot_losses import read_series

from diffusion_fairseq.diffusion.process import q_sample
from diffusion_fairseq.diffusion.schedules import BETAS, SigmaEqualsT
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import ngram
from diffusion_fairseq.metrics.diversity import distinct, mean_words
from diffusion_fairseq.metrics.report import text_table
from diffusion_fairseq.models.base import VLB
from diffusion_fairseq.tasks.diffusion_lm import DiffusionLMTaskConfig

TASK = "diffusion_lm"
VARIANTS = {
    "schedules": {name: f"--noise-schedule {name}" for name in BETAS},
    "losses": {
        "rounding": "--criterion diffusion_vlb",
        "anchor": "--criterion diffusion_anchor",
        "anchor and rounding": "--criterion diffusion_anchor --rounding-weight 1",
        "anchor, aim detached": "--criterion diffusion_anchor --detach aim",
    },
}
VALID = ("mse", "accuracy", "accuracy_x0", "embedding_norm", "embedding_nearest", "embedding_rank")
TEXTS = ("perplexity", "unknown %", "dist-1 %", "dist-2 %", "dist-3 %", "words")
LEVELS = [-8, -6, -4, -2, 0, 2, 4]
SCORING = ("subset", "levels", "steps", "no_clamping", "words")
WHOSE, LEVEL_MEASURES = ("schedule", "embeddings"), ("mse", "accuracy")
NEAR = 0.5  # of a wanted log-SNR the nearest trained one may be so far
NOISE_SEED = 1
ONE_AT_A_TIME = Lock()  # loading a model seeds torch's own generator


class Judge(NamedTuple):
    """What texts are measured with."""

    ngrams: NGrams
    longest: int

    def scores(self, texts: list[str]) -> dict[str, float]:
        texts = [" ".join(text.split()[: self.longest]) for text in texts]
        unknown = self.ngrams.unknown_share(texts)
        return {
            "perplexity": ngram.perplexity(self.ngrams.log_probabilities(texts)),
            "unknown %": math.nan if unknown is None else 100 * unknown,
            **{f"dist-{n} %": 100 * distinct(texts, n) for n in (1, 2, 3)}, "words": mean_words(texts),
        }


# ---- one training

def nearest_time(schedule, wanted: float) -> torch.Tensor | None:
    """The trained time whose log(alpha^2 / sigma^2), a mean where positions have their own, is next to the wanted one;
    None where that is none."""
    if isinstance(schedule, SigmaEqualsT):
        sigma = math.exp(-wanted / 2)
        return torch.tensor(sigma) if schedule.t_min <= sigma <= schedule.t_max else None
    level = schedule.at(torch.arange(schedule.num_timesteps))
    log_snr = 2 * (level.alpha / level.sigma).log()
    apart = (log_snr if log_snr.dim() == 1 else log_snr.mean(dim=1)).sub(wanted).abs()
    return apart.argmin() if apart.min() <= NEAR else None


def examples_of(model, examples: Iterable[dict], generator: torch.Generator) -> Iterator[tuple]:
    """What is predicted of every batch, and its embeddings."""
    for batch in examples:
        source, target = (tensor.to(generator.device) for tensor in (batch["net_input"]["src_tokens"], batch["target"]))
        example = model.example(source, target, len(source), VLB, generator)
        yield example, model.embed(example.target)


@torch.inference_mode()
def variance_of(model, examples: Iterable[dict]) -> float:
    """The variance of a component of the embeddings of the tokens that are predicted, the mean over components."""
    generator = torch.Generator(next(model.parameters()).device)
    values = torch.cat([x0[example.counts].cpu() for example, x0 in examples_of(model, examples, generator)])
    return float(values.double().var(dim=0, correction=0).mean())


@torch.inference_mode()
def at_level(model, examples: Iterable[dict], time: torch.Tensor, variance: float) -> dict[str, float]:
    """The squared error as a share of the embeddings' variance, and the accuracy, of all positions noised to a time."""
    device = next(model.parameters()).device
    search = model.token_search(torch.zeros(model.embedding.num_embeddings, dtype=torch.bool, device=device))
    generator = torch.Generator(device).manual_seed(NOISE_SEED)
    error = right = count = 0
    for example, x0 in examples_of(model, examples, generator):
        t = time.to(device).expand(len(x0))
        noise = torch.randn(x0.shape, generator=generator, device=device)
        xt = q_sample(x0, model.schedule.at(t).cut(x0.size(1)), noise)
        estimate = model.denoise(xt, t, example.memory, example.packing)
        if model.self_conditioning:
            estimate = model.denoise(xt, t, example.memory, example.packing, estimate)
        counted = example.counts
        error += float((estimate - x0).square().mean(dim=-1)[counted].sum())
        right += int((search(estimate) == example.target)[counted].sum())
        count += int(counted.sum())
    return {"mse": error / count / variance, "accuracy": right / count}


def levels_of(data: Path, checkpoint: Path, arguments: argparse.Namespace) -> dict[str, dict[str, dict[str, float]]]:
    """Of whose log-SNR -> level -> `at_level` of a checkpoint, at every wanted log-SNR that it was trained at."""
    options = trained_options(checkpoint)
    with ONE_AT_A_TIME:
        task, model = load(SimpleNamespace(
            task=TASK, data=str(data), path=str(checkpoint), subset=arguments.subset, seed=1, given_positions="none",
            sample_break_mode=options["sample_break_mode"], max_target_positions=options["tokens_per_sample"]))
    texts = task.dataset(arguments.subset)
    examples = batches(texts, arguments.batch_size, len(texts))
    variance = variance_of(model, examples)
    found = {}
    for whose, shift in zip(WHOSE, (0, math.log(variance))):
        times = {str(wanted): nearest_time(model.schedule, wanted - shift) for wanted in arguments.levels}
        found[whose] = {wanted: at_level(model, examples, time, variance)
                        for wanted, time in times.items() if time is not None}
    return found


def trained_options(checkpoint: Path) -> dict:
    """The options of the task that a checkpoint was trained with."""
    return torch.load(checkpoint, map_location="cpu", weights_only=True)["cfg"]["task"]


def written(work: Path, checkpoint: Path, arguments: argparse.Namespace) -> list[str]:
    """A text from nothing for every one of the subset."""
    model, options = work / "sentencepiece.model", trained_options(checkpoint)
    bpe = ["--bpe", "sentencepiece", "--sentencepiece-model", model] if model.exists() else []
    clamping = [] if arguments.no_clamping else ["--clamping"]
    output = generate(work / "data-bin", TASK, checkpoint, [
        "--gen-subset", arguments.subset, "--diffusion-steps", arguments.steps, "--batch-size", arguments.batch_size,
        "--tokens-per-sample", options["tokens_per_sample"], "--sample-break-mode", options["sample_break_mode"],
        "--given-positions", "none", *bpe, *clamping])
    return read_generated([str(output)]).candidates[0]


def options_for(arguments: argparse.Namespace, variant: str) -> list[str]:
    """What fairseq-train is told of a variant."""
    return [*arguments.train, *shlex.split(arguments.variants[variant])]


def trainings(arguments: argparse.Namespace, judge: Judge | None) -> dict[str, Callable[[], dict]]:
    """What makes a row for each variant and seed."""
    def one(variant: str, seed: int) -> dict:
        folder = arguments.output / folder_of(variant, seed)
        checkpoint = train(arguments.work / "data-bin", TASK, folder, seed, options_for(arguments, variant))
        curves = {name: series.get("valid", []) for name, series in
                  read_series([str(folder / "train.log")]).items() if name in VALID}
        row = {"variant": variant, "seed": seed, "options": options_of(arguments, SCORING), "curves": curves,
               "levels": levels_of(arguments.work / "data-bin", checkpoint, arguments)}
        return row if judge is None else {**row, "texts": judge.scores(written(arguments.work, checkpoint, arguments))}

    return {folder_of(variant, seed): partial(one, variant, seed) for seed in range(1, arguments.seeds + 1)
            for variant in arguments.variants}


# ---- all together

def whose_weights(variants: Sequence[str], averaged: Sequence[str]) -> str:
    """The title of the validation's table: whether the other tables are of the same weights; `averaged` are the
    variants with --store-ema."""
    if not averaged:
        return "valid, at the last update, whose weights all tables are of"
    all_of_them = len(averaged) == len(variants)
    return ("valid, at the last update, of the weights themselves; the other tables are of "
            + ("the averaged ones" if all_of_them else f"them, too, but of {', '.join(averaged)} of the averaged ones")
            + " (--store-ema)")


def tables(variants: dict[str, list[dict]], averaged: Sequence[str], data: dict[str, float] | None,
           levels: list[int]) -> str:
    """Validation, equal noise, texts."""
    last = {name: {"updates": mean_of([max(points[-1][0] for points in row["curves"].values()) for row in rows], 0),
                   **{key: mean_of([row["curves"][key][-1][1] for row in rows if row["curves"].get(key)], 4)
                      for key in VALID}} for name, rows in variants.items()}
    said = [f"{whose_weights([*variants], averaged)}\n\n{text_table(last, ('updates', *VALID))}"]
    for whose, key in product(WHOSE, LEVEL_MEASURES):
        cells = {name: {str(level): mean_of([y for row in rows for x, y in level_curve(row, whose, key, [level])], 3)
                        for level in levels} for name, rows in variants.items()}
        said.append(f"{key} at log-SNR of the {whose}\n\n{text_table(cells, list(map(str, levels)))}")
    if data is not None:
        texts = {name: {key: mean_of([row["texts"][key] for row in rows if "texts" in row], 1) for key in TEXTS}
                 for name, rows in variants.items()}
        texts[DATA] = {key: mean_of([data[key]], 1) for key in TEXTS}
        said.append(f"texts\n\n{text_table(texts, TEXTS)}")
    return "\n\n".join(said)


def level_curve(row: dict, whose: str, key: str, levels: list[int]) -> list[tuple[int, float]]:
    """(log-SNR, measure) of a training at the levels that it was trained at."""
    found = row["levels"][whose]
    return [(level, found[str(level)][key]) for level in levels if str(level) in found]


def plot(variants: dict[str, list[dict]], levels: list[int], rows: dict[str, dict], file: Path) -> None:
    """A panel for every measure of validation over the updates, and for those at equal noise; a line a variant with
    the range of its seeds."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 5, figsize=(22, 8), layout="constrained")
    for axis, name in zip(axes.flat, VALID):
        draw_bands(axis, {variant: [row["curves"].get(name, []) for row in of] for variant, of in variants.items()})
        axis.set(title=f"valid {name}", xlabel="updates")
    for axis, (key, whose) in zip(axes.flat[len(VALID):], product(LEVEL_MEASURES, WHOSE)):
        draw_bands(axis, {variant: [level_curve(row, whose, key, levels) for row in of]
                          for variant, of in variants.items()})
        axis.set(title=f"{key} after training", xlabel=f"log-SNR of the {whose}")
    axes.flat[0].legend(fontsize=8)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=130)


def tokens_per_sample(arguments: argparse.Namespace) -> int:
    """The longest sample of every training.

    Raises:
        UserError: the variants have different ones, so that no length of real text stands for all.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--tokens-per-sample", type=int, default=DiffusionLMTaskConfig.tokens_per_sample)
    found = {parser.parse_known_args(options_for(arguments, name))[0].tokens_per_sample for name in arguments.variants}
    if len(found) > 1:
        raise UserError(f"variants of different --tokens-per-sample ({', '.join(map(str, sorted(found)))}) write texts "
                        "of different lengths: give all the same, or --steps 0")
    return found.pop()


def variant(text: str) -> tuple[str, str]:
    name, equals, options = text.partition("=")
    if not (name.strip() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=OPTIONS, such as 'hot=--lr 1e-3'")
    words(options)
    return name.strip(), options


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, metavar="DIR", help="folder with data-bin/ and text/")
    parser.add_argument("--variants", choices=VARIANTS, action="append", default=[], dest="sets",
                        help="a set that is known here; repeatable")
    parser.add_argument("--variant", type=variant, action="append", default=[], metavar="NAME=OPTIONS",
                        help="one of your own, with options of fairseq-train; repeatable")
    add_study_options(parser, "of each variant")
    parser.add_argument("--subset", default="test", help="split that is scored (default: test)")
    parser.add_argument("--levels", type=numbers, default=LEVELS, metavar="N,M,...",
                        help=f"log-SNRs; write --levels=-4,0 (default: {','.join(map(str, LEVELS))})")
    parser.add_argument("--steps", type=count(0), default=50,
                        help="reverse steps of the texts, 0: no texts (default: %(default)s)")
    parser.add_argument("--no-clamping", action="store_true", help="write without the clamping trick")
    parser.add_argument("--batch-size", type=count(1), default=64, help="texts at a time (default: 64)")
    arguments = parse_study(parser)
    arguments.variants = dict(pair for name in arguments.sets for pair in VARIANTS[name].items())
    arguments.variants.update(arguments.variant)
    if not arguments.variants:
        parser.error("nothing to compare: give --variants or --variant")
    if len({folder_of(name, 1) for name in arguments.variants}) < len(arguments.variants):
        parser.error("two variants would have one folder: give them other names")
    if "--disable-validation" in arguments.train:
        parser.error("--disable-validation leaves nothing to compare")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    text = arguments.work / "text"
    wanted = [arguments.work / "data-bin"]
    wanted += [text / "train.txt", text / f"{arguments.subset}.txt"] if arguments.steps else []
    if missing := [str(path) for path in wanted if not path.exists()]:
        raise UserError(f"no {', '.join(missing)}: make them with scripts/prepare_lines.py"
                        + (", or leave texts out with --steps 0" if arguments.steps else ""))
    arguments.work = arguments.work.resolve()
    length = tokens_per_sample(arguments) if arguments.steps else 0
    prepare_output(arguments)
    keep_options(arguments.output, {"train": arguments.train, "work": str(arguments.work),
                                    **content_of(arguments.work / "data-bin", text)}, arguments.variants)
    # A file by its content is one of the options that rows are measured with.
    subwords = (arguments.work / "sentencepiece.model").exists()
    arguments.words = None if subwords else arguments.work / "data-bin/dict.txt"
    judge = data = None
    if arguments.steps:
        known = None if subwords else read_words(str(arguments.words))
        # As many words as generated texts have at most: the end of a sentence is a token.
        judge = Judge(read_ngrams(str(text / "train.txt"), words=known), length - 1)
        data = judge.scores([as_known(line, known) for line in read_lines(str(text / f"{arguments.subset}.txt"))])
    file = arguments.output / "study.json"
    forget_others(file, options_of(arguments, SCORING))
    rows = measure(trainings(arguments, judge), file, arguments.jobs)
    variants = by_variant(rows)
    averaged = [name for name in variants if "--store-ema" in options_for(arguments, name)]
    said = (f"{tables(variants, averaged, data, arguments.levels)}\n\n{arguments.subset} set, {arguments.seeds} seed(s)"
            + (f"; texts in {arguments.steps} steps" if arguments.steps else "")
            + f"\nevery training: {shlex.join(arguments.train)}\n")
    report(arguments.output / "study", rows, said, partial(plot, variants, arguments.levels))


if __name__ == "__main__":
    run_study(main)
