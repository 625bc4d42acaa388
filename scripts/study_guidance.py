"""Control against fluency: how far a classifier leads a diffusion language model, at several scales.

    python scripts/study_guidance.py runs/control/data-bin --path runs/control/averaged.pt \
        --classifier runs/control/classifier/checkpoint_best.pt --label web --text runs/control/text --output study

The label is looked for by another classifier than the one that leads: logistic regression over the counts of words
(scikit-learn, which fairseq depends on), trained on TEXT/train.txt and train.label. Beside it stand the perplexity of
a 3-gram model of TEXT/train.txt, with --scorer the AR-NLL under a causal language model, in nats a token, and dist-2.
The row "held out" is as many lines as are written, drawn from those of the label in TEXT/valid.txt. Writes .json (with
every text), .txt and .png; interrupted, it goes on where it was: scales that the .json holds are not generated again.
Other texts or measures need another --output.
"""

import argparse
import random
import time
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional

import _environment  # noqa: F401  says what this Python lacks
import torch
from _generated import read_lines
from _lm_scorer import Scorer, load_scorer
from _option_types import count
from _study import named, options_of, read_rows, refuse_others, report, run_study, write_rows
from fairseq import checkpoint_utils
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from tqdm import tqdm

import diffusion_fairseq  # noqa: F401  registers the task and the models
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.metrics.diversity import distinct
from diffusion_fairseq.metrics.model_based import ar_nll
from diffusion_fairseq.metrics.ngram import KneserNey, kneser_ney, log_probabilities, perplexity, read_corpus
from diffusion_fairseq.metrics.report import text_table
from diffusion_fairseq.tasks.sampling_config import SamplingConfig

COLUMNS = ("label", "perplexity", "AR-NLL", "dist-2", "seconds")
PLOTTED = ("label", "perplexity", "AR-NLL", "dist-2")
HELD_OUT = "held out"
OPTIONS = ("data", "path", "classifier", "label", "text", "subset", "samples", "steps", "clamping", "classifier_steps",
           "classifier_fluency", "scorer", "gguf", "batch_size", "seed")


class Judges(NamedTuple):
    """What texts are measured with, none of which takes part in writing them."""

    classifier: Pipeline
    language_model: KneserNey
    scorer: Optional[Scorer]
    label: str

    def scores(self, texts: List[str]) -> Dict[str, Optional[float]]:
        """Per cent of the texts that have the label, their perplexity, AR-NLL and dist-2."""
        found = self.classifier.predict(texts)
        nll = None if self.scorer is None else ar_nll(texts, self.scorer.model, self.scorer.tokenizer).per_token
        return {"label": 100 * float((found == self.label).mean()),
                "perplexity": perplexity(log_probabilities(self.language_model, texts)), "AR-NLL": nll,
                "dist-2": distinct(texts, 2)}


class Labelled(NamedTuple):
    texts: List[str]
    labels: List[str]

    @classmethod
    def read(cls, folder: Path, split: str) -> "Labelled":
        """A split's lines and their labels. UserError: they are not as many."""
        texts, labels = (read_lines(str(folder / f"{split}.{kind}")) for kind in ("txt", "label"))
        if len(texts) != len(labels):
            raise UserError(f"{folder}: {len(texts)} lines in {split}.txt, {len(labels)} in {split}.label")
        return cls(texts, labels)


def judges(folder: Path, label: str, scorer: Optional[Scorer]) -> Judges:
    """Train the judges on the labelled text.

    Raises:
        UserError: it has no such label.
    """
    train = Labelled.read(folder, "train")
    if label not in train.labels:
        raise UserError(f"--label {label!r} is not in {folder / 'train.label'}, which has "
                        f"{', '.join(sorted(set(train.labels)))}")
    words = CountVectorizer(token_pattern=r"\S+", lowercase=False)
    classifier = make_pipeline(words, LogisticRegression(max_iter=1000))
    classifier.fit(train.texts, train.labels)
    return Judges(classifier, kneser_ney(read_corpus(train.texts)), scorer, label)


class Writer:
    """Writes texts as long as the first lines of a split, from nothing."""

    def __init__(self, arguments: argparse.Namespace):
        overrides = {"data": arguments.data, "given_positions": "none", "prompt_length": None}
        (self.model,), _, self.task = checkpoint_utils.load_model_ensemble_and_task([arguments.path], overrides)
        self.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.task.load_dataset(arguments.subset)
        prompts = self.task.dataset(arguments.subset)
        count = min(arguments.samples, len(prompts))
        self.batches = [prompts.collater([prompts[i] for i in range(first, min(first + arguments.batch_size, count))])
                        for first in range(0, count, arguments.batch_size)]
        self.options = {"diffusion_steps": arguments.steps, "clamping": arguments.clamping,
                        "classifier": arguments.classifier, "classifier_label": arguments.label,
                        "classifier_steps": arguments.classifier_steps,
                        "classifier_fluency": arguments.classifier_fluency, "seed": arguments.seed}

    def write(self, scale: float) -> List[str]:
        sampling = SamplingConfig(classifier_scale=scale, **self.options)
        generator = DiffusionGenerator(self.model, self.task.target_dictionary, sampling)
        device, texts = self.model.embedding.weight.device, []
        with torch.inference_mode():
            for batch in tqdm(self.batches, desc=f"scale {scale:g}", unit=" batches", leave=False):
                sample = {"id": batch["id"], "net_input": {"src_tokens": batch["net_input"]["src_tokens"].to(device)}}
                texts += [self.task.target_dictionary.string(found[0]["tokens"])
                          for found in generator.generate([self.model], sample)]
        return texts


def run(writer: Writer, judge: Judges, held_out: List[str], scales: List[float], file: Path,
        options: Dict) -> Dict[str, Dict]:
    """The rows of the scales and of the texts held out; what the file does not hold yet is measured, and the file
    rewritten after each of them.

    Raises:
        UserError: the file holds rows of other options.
    """
    rows = read_rows(file)
    refuse_others(file, rows, options)
    names = {f"scale {scale:g}": scale for scale in scales}
    for name, scale in names.items():
        if name not in rows:
            began = time.perf_counter()
            texts = writer.write(scale)
            seconds = time.perf_counter() - began
            rows[name] = {"scale": scale, "options": options, **judge.scores(texts), "seconds": seconds, "texts": texts}
            write_rows(file, rows)
    if HELD_OUT not in rows:
        rows[HELD_OUT] = {"options": options, **judge.scores(held_out)}
        write_rows(file, rows)
    return {name: rows[name] for name in (*names, HELD_OUT)}


def plot(rows: Dict[str, Dict], file: Path) -> None:
    """Each measure against the scale, and that of the held-out text as a line."""
    from matplotlib import pyplot

    points = sorted((row for row in rows.values() if "scale" in row), key=lambda row: row["scale"])
    names = [name for name in PLOTTED if all(row.get(name) is not None for row in rows.values())]
    figure, axes = pyplot.subplots(1, len(names), figsize=(4.3 * len(names), 4), layout="constrained")
    for axis, name in zip(axes, names):
        axis.plot([row["scale"] for row in points], [row[name] for row in points], marker="o")
        axis.axhline(rows[HELD_OUT][name], linestyle="--", color="gray", label="held-out text of the label")
        axis.set(xlabel="--classifier-scale", title=name + (" (%)" if name == "label" else ""))
        axis.set_xscale("symlog", linthresh=1)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(file, dpi=130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder that the language model was trained on")
    parser.add_argument("--path", required=True, metavar="FILE", help="checkpoint of the language model")
    parser.add_argument("--classifier", required=True, metavar="FILE", help="checkpoint of its latent_classifier")
    parser.add_argument("--label", required=True, help="what is asked for")
    parser.add_argument("--text", required=True, type=Path, metavar="DIR",
                        help="{train,valid}.txt, words between blanks, and {train,valid}.label, their labels")
    parser.add_argument("--scales", type=float, nargs="+", default=[0, 1, 3, 10, 30], metavar="S",
                        help="default: 0 1 3 10 30")
    parser.add_argument("--subset", default="valid", help="split whose lengths the texts take (default: valid)")
    parser.add_argument("--samples", type=count(1), default=200, help="texts at each scale (default: 200)")
    parser.add_argument("--steps", type=count(1), default=100, help="reverse steps (default: 100)")
    parser.add_argument("--clamping", action="store_true", help="the clamping trick")
    parser.add_argument("--classifier-steps", type=count(1), default=SamplingConfig.classifier_steps)
    parser.add_argument("--classifier-fluency", type=float, default=SamplingConfig.classifier_fluency)
    parser.add_argument("--scorer", metavar="MODEL",
                        help="folder or hub name of a causal language model of transformers: adds AR-NLL")
    parser.add_argument("--gguf", metavar="FILE", help="the scorer is this GGUF file of its folder")
    parser.add_argument("--batch-size", type=count(1), default=100, help="texts at a time (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="of the texts (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("study-guidance"), help="files to write, without ending")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    scorer = load_scorer("--scorer", arguments.scorer, arguments.gguf) if arguments.scorer else None
    judge, held_out = judges(arguments.text, arguments.label, scorer), Labelled.read(arguments.text, "valid")
    options = options_of(arguments, OPTIONS, {"data": (f"{arguments.subset}.*", "dict.txt"),
                                              "text": ("train.txt", "train.label", "valid.txt", "valid.label")})
    own = [text for text, label in zip(*held_out) if label == arguments.label]
    if not own:
        raise UserError(f"--label {arguments.label!r} is not in {arguments.text / 'valid.label'}, so that no held-out "
                        "text can stand beside those that are written")
    # dist-2 falls with the number of texts: as many as are written.
    own = random.Random(arguments.seed).sample(own, min(arguments.samples, len(own)))
    rows = run(Writer(arguments), judge, own, arguments.scales, named(arguments.output, ".json"), options)
    accuracy = 100 * judge.classifier.score(*held_out)
    by = "no --scorer" if scorer is None else scorer.name
    said = (f"{text_table(rows, COLUMNS, digits=2)}\n\nlabel: % of the texts that a bag-of-words classifier, which led "
            f"none of them, takes for {arguments.label} (right on {accuracy:.1f} % of valid); perplexity of a 3-gram "
            f"model of the training text; AR-NLL by {by}; {arguments.samples} texts a "
            f"row, {arguments.steps} steps{', clamped' if arguments.clamping else ''}\n")
    report(arguments.output, rows, said, plot)


if __name__ == "__main__":
    run_study(main)
