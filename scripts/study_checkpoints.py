"""What each checkpoint of a training scores, in one table and as curves over updates.

    python scripts/study_checkpoints.py runs/qqp --checkpoints runs/qqp/checkpoints --output runs/study
    python scripts/study_checkpoints.py runs/qqp --system partial=runs/qqp/checkpoints --system full=runs/qqp/full \\
        --candidates 3 --bertscore models/deberta-xlarge-mnli --output runs/study

Give a system's name again for its training with another seed: lines are then means over seeds, with their standard
deviation.

The first folder is one that scripts/binarise.py made. Of a folder of checkpoints those that --save-interval-updates
wrote are read (checkpoint_EPOCH_UPDATES.pt); a file stands for itself. Train with --keep-interval-updates -1 to have
them all. Writes study.json, study.txt and study.png into --output, the output of each generation beside them.
Interrupted, it goes on where it was: checkpoints that study.json holds are not generated from again.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Dict, List, NamedTuple

import _environment  # noqa: F401  says what this Python lacks
from _commands import REPOSITORY, USER_DIR, fairseq, run
from _data import sha256
from _evaluation import DIFFUSEQ_MEASURES, check_nltk, diffuseq_signatures, evaluate
from _generated import Outputs, read_generated, read_lines
from _option_types import count, named
from _study import (
    content_of,
    device_options,
    draw_bands,
    mean_of,
    options_of,
    read_rows,
    report,
    run_study,
    split_command_line,
    write_rows,
)
from fairseq import checkpoint_utils
from tqdm import tqdm

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import model_based
from diffusion_fairseq.metrics.report import text_table

COLUMNS = {"bleu": "BLEU", "rougeL": "ROUGE-L", **DIFFUSEQ_MEASURES, "bertscore": "BERTScore", "dist1": "dist-1 %",
           "dist1_sentence": "dist-1 in sentence %", "words": "len", "self_bleu": "self-BLEU", "div4": "div-4 %"}
INTERVAL = re.compile(r"checkpoint_\d+_(\d+)\.pt")
COPY = "copy of the source"
SCORING = ("work", "subset", "bpe_model", "steps", "candidates", "bertscore", "bertscore_layer")


class Checkpoint(NamedTuple):
    """A file of a system's training, the seed-th of that system."""

    system: str
    file: Path
    seed: int = 1

    @property
    def folder(self) -> str:
        return self.system if self.seed == 1 else f"{self.system}-seed{self.seed}"

    @property
    def name(self) -> str:
        return f"{self.folder} {self.file.stem}"


def all_checkpoints(files: List[Path], systems: List[tuple[str, Path]]) -> List[Checkpoint]:
    """Those of one system in files or folders, and of named systems, where a name that comes again is another seed.

    Raises:
        UserError: two would have one name.
    """
    found = [one for place in files for one in checkpoints_of("model", place, seed=1)]
    names = [name for name, _ in systems]
    for index, (name, place) in enumerate(systems):
        found += checkpoints_of(name, place, seed=1 + names[:index].count(name))
    if len({one.name for one in found}) < len(found):
        raise UserError("two checkpoints have the same system and name: give --system other names")
    return found


def checkpoints_of(name: str, place: Path, seed: int) -> List[Checkpoint]:
    """The checkpoints in a folder by updates, or the file itself.

    Raises:
        UserError: there is none.
    """
    if place.is_file():
        return [Checkpoint(name, place.resolve(), seed)]
    found = {int(match[1]): file for file in place.glob("*.pt") if (match := INTERVAL.fullmatch(file.name))}
    if not found:
        raise UserError(f"{place} has no checkpoint_EPOCH_UPDATES.pt: train with --save-interval-updates and "
                        "--keep-interval-updates -1, or give a file")
    return [Checkpoint(name, found[updates].resolve(), seed) for updates in sorted(found)]


def generate(checkpoint: Checkpoint, arguments: argparse.Namespace) -> Path:
    """fairseq-generate's output from the checkpoint's averaged weights, or from its own where it keeps none."""
    folder = arguments.output / checkpoint.folder
    folder.mkdir(parents=True, exist_ok=True)
    output, weights = folder / f"{checkpoint.file.stem}.txt", checkpoint.file
    state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint.file))
    if any(state["extra_state"].get(key) for key in ("ema_fp32_params", "ema")):
        weights = folder / "averaged.pt"
        run([sys.executable, str(REPOSITORY / "scripts/export_checkpoint.py"), "--ema", str(checkpoint.file),
             "--output", str(weights)], folder / "export.log")
    words = fairseq("fairseq-generate", arguments.work / "data-bin", "--user-dir", USER_DIR, "--task",
                    "seq2seq_diffusion", "--path", weights, "--gen-subset", arguments.subset, "--bpe", "sentencepiece",
                    "--sentencepiece-model", arguments.bpe_model or arguments.work / "sentencepiece.model",
                    "--diffusion-steps", arguments.steps, "--clamping", "--candidates", arguments.candidates,
                    "--nbest", arguments.candidates, "--batch-size", arguments.batch_size, *arguments.generation,
                    *device_options())
    run(words, output)
    return output


def scored(outputs: Outputs, arguments: argparse.Namespace) -> Dict[str, Dict[str, float]]:
    """The measures of each row that evaluate.py has for one system, the copied source's too."""
    text = arguments.work / "text" / arguments.subset
    found = evaluate(outputs, read_lines(f"{text}.tgt"), read_lines(f"{text}.src"), name="model",
                     utilities=("bleu",) if arguments.candidates > 1 else (), bert_scorer=arguments.scorer,
                     diffuseq=arguments.diffuseq_metrics)
    return {name: {key: value for key, value in {**row, **found.diversity[name]}.items() if key in COLUMNS}
            for name, row in found.rows.items()}


def measure(checkpoints: List[Checkpoint], arguments: argparse.Namespace, file: Path) -> Dict[str, Dict]:
    """The scores of every checkpoint, kept in `file` as soon as they are known."""
    rows = read_rows(file)
    # Named only where asked for: rows of studies from before it existed hold.
    diffuseq = ("diffuseq_metrics",) if arguments.diffuseq_metrics else ()
    settings = {**options_of(arguments, (*SCORING, *diffuseq)), "generation": arguments.generation,
                **content_of(arguments.work / "data-bin", arguments.work / "text")}
    for checkpoint in tqdm(checkpoints, unit=" checkpoints", disable=None):
        kept, content = rows.get(checkpoint.name, {}), sha256(checkpoint.file)
        if (kept.get("sha256"), kept.get("settings")) == (content, settings):
            continue
        state = checkpoint_utils.load_checkpoint_to_cpu(str(checkpoint.file))
        rows[checkpoint.name] = {
            "system": checkpoint.system, "seed": checkpoint.seed, "sha256": content, "settings": settings,
            "updates": state["optimizer_history"][-1]["num_updates"],
            "scores": scored(read_generated([str(generate(checkpoint, arguments))]), arguments),
        }
        write_rows(file, rows)
    return {checkpoint.name: rows[checkpoint.name] for checkpoint in checkpoints}


def lines_of(rows: Dict[str, Dict]) -> Dict[str, List[Dict[str, float]]]:
    """The seeds' scores by each way to choose of each system at each number of updates, and the copied source's."""
    lines: Dict[str, List[Dict[str, float]]] = {}
    for row in sorted(rows.values(), key=lambda row: row["updates"]):
        for name, scores in row["scores"].items():
            if name.startswith("model"):
                line = f"{row['system']}, {row['updates']} updates{name.removeprefix('model')}"
                lines.setdefault(line, []).append(scores)
    return {**lines, COPY: [next(iter(rows.values()))["scores"][COPY]]}


def table(rows: Dict[str, Dict]) -> str:
    lines = lines_of(rows)
    columns = [key for key in COLUMNS if any(key in seed for seeds in lines.values() for seed in seeds)]
    cells = {name: {COLUMNS[key]: mean_of([seed[key] for seed in seeds if key in seed], 2) for key in columns}
             for name, seeds in lines.items()}
    return text_table(cells, [COLUMNS[key] for key in columns])


def plot(rows: Dict[str, Dict], file: Path) -> None:
    """Each measure of the first candidate, or of the set, over updates; a line a system with the range of its seeds,
    the copied source dashed."""
    from matplotlib.figure import Figure

    def value(row: Dict, key: str):
        return next((scores[key] for name, scores in row["scores"].items() if name.startswith("model")
                     and key in scores), None)

    keys = [key for key in COLUMNS if any(value(row, key) is not None for row in rows.values())]
    figure = Figure(figsize=(4.2 * len(keys), 3.8), layout="constrained")
    for axis, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys):
        series: Dict[str, Dict[int, List]] = {}
        for row in rows.values():
            curves = series.setdefault(row["system"], {})
            curves.setdefault(row["seed"], []).append((row["updates"], value(row, key)))
        draw_bands(axis, {name: list(curves.values()) for name, curves in series.items()})
        copied = next(iter(rows.values()))["scores"][COPY].get(key)
        if copied is not None:
            axis.axhline(copied, color="grey", linestyle="--", linewidth=1, label=COPY)
        axis.set(title=COLUMNS[key], xlabel="updates")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(file, dpi=130)


def parse_arguments() -> argparse.Namespace:
    own, generation = split_command_line()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="What stands after -- goes to every fairseq-generate.")
    parser.add_argument("work", type=Path, metavar="DIR", help="folder with text/ and data-bin/, by binarise.py")
    parser.add_argument("--checkpoints", type=Path, nargs="+", default=[], metavar="FILE",
                        help="a folder of checkpoints, or files: the system `model`")
    parser.add_argument("--system", type=named("NAME=FOLDER", Path, "full=runs/qqp/full"), action="append", default=[],
                        metavar="NAME=FOLDER",
                        help="another training's folder, or a file; repeatable, with the same name for another seed")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of all that is made")
    parser.add_argument("--subset", default="test", help="split to score (default: test)")
    parser.add_argument("--bpe-model", type=Path, metavar="FILE", help="default: sentencepiece.model in DIR")
    parser.add_argument("--steps", type=count(1), default=20, help="reverse steps, clamped (default: 20)")
    parser.add_argument("--candidates", type=count(1), default=1,
                        help="of each sentence; with several also self-BLEU, div-4 and MBR (default: 1)")
    parser.add_argument("--batch-size", type=count(1), default=64, help="sentences generated at a time (default: 64)")
    parser.add_argument("--diffuseq-metrics", action="store_true",
                        help="also BLEU and ROUGE-L as the papers have them, as in evaluate.py")
    parser.add_argument("--bertscore", metavar="MODEL", help="also BERTScore by this model, as in evaluate.py")
    parser.add_argument("--bertscore-layer", type=int, metavar="N", help="as in evaluate.py")
    arguments = parser.parse_args(own)
    arguments.generation = generation
    if not arguments.checkpoints and not arguments.system:
        parser.error("no checkpoints: give --checkpoints FOLDER or --system NAME=FOLDER")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    for folder in (arguments.work / "data-bin", arguments.work / "text"):
        if not folder.is_dir():
            raise UserError(f"no folder {folder}: make it with scripts/binarise.py")
    arguments.work, arguments.output = arguments.work.resolve(), arguments.output.resolve()
    arguments.bpe_model = arguments.bpe_model and arguments.bpe_model.resolve()
    checkpoints = all_checkpoints(arguments.checkpoints, arguments.system)
    if arguments.diffuseq_metrics:
        check_nltk()
    arguments.scorer = None
    if arguments.bertscore:
        arguments.scorer = model_based.load_bert_scorer(arguments.bertscore, arguments.bertscore_layer)
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = measure(checkpoints, arguments, arguments.output / "study.json")
    said = (f"{table(rows)}\n\n{arguments.subset}, {arguments.steps} clamped steps, {arguments.candidates} "
            "candidate(s); BLEU of the corpus, ROUGE and BERTScore F1 x 100; the oracle reads the reference\n")
    if arguments.diffuseq_metrics:
        said += "".join(f"{name}: {signature}\n" for name, signature in diffuseq_signatures().items())
    report(arguments.output / "study", rows, said, plot)


if __name__ == "__main__":
    run_study(main)
