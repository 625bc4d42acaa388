"""Quality against the number of candidates: by model score, mean, MBR, and the oracle (chosen with the reference).

    fairseq-generate ... --candidates 20 --nbest 20 > generated.txt
    python scripts/study_candidates.py generated.txt --references test.tgt --output study-candidates

One generation of the largest number serves for all: each smaller one is the mean over random subsets of every
sentence's candidates, so that no number is favoured by a lucky draw. Writes .json, .txt and .png.
"""

import argparse
from pathlib import Path
from typing import Dict, List

import _environment  # noqa: F401  says what this Python lacks
import numpy as np
from _generated import Outputs, aligned_lines, read_generated
from _option_types import count, numbers
from _study import named, report, run_study, write_rows
from tqdm import tqdm

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics.overlap import rouge_per_sentence
from diffusion_fairseq.metrics.report import text_table
from diffusion_fairseq.text.reranking import ORACLES, most_useful, oracle_picks, pairwise

MEASURES = ("rouge1", "rouge2", "rougeL")
UTILITY = "rougeL"
SELECTIONS = ("model score", "mean", "MBR", "oracle")
OFFERED = [name for name, measures in ORACLES.items() if set(measures) <= set(MEASURES)]


def measure(scores: np.ndarray, utilities: List[np.ndarray], subsets: np.ndarray,
            oracle: str = UTILITY) -> Dict[str, np.ndarray]:
    """Means over sentences (M,) of each selection.

    Args:
        scores: (S, N, M), each candidate against the reference, the best by model score first.
        utilities: for each sentence (N, N), candidates against one another.
        subsets: (S, n) the candidates that are looked at, rising.
        oracle: of OFFERED, what the oracle chooses by.
    """
    rows = np.arange(len(scores))
    inside = scores[rows[:, None], subsets]
    mbr = [most_useful(matrix[np.ix_(chosen, chosen)]) for matrix, chosen in zip(utilities, subsets)]
    best = oracle_picks(inside, MEASURES, oracle)
    return {"model score": inside[:, 0].mean(axis=0), "mean": inside.mean(axis=(0, 1)),
            "MBR": inside[rows, mbr].mean(axis=0), "oracle": inside[rows, best].mean(axis=0)}


def by_model_score(outputs: Outputs) -> List[List[str]]:
    """The candidates, each sentence's best by model score first: --rank-by mbr prints them in another order."""
    if outputs.scores is None:
        return outputs.candidates
    ranked = [sorted(zip(texts, scores), key=lambda found: -found[1])
              for texts, scores in zip(zip(*outputs.candidates), zip(*outputs.scores))]
    return [[text for text, _ in column] for column in zip(*ranked)]


def study(outputs: Outputs, references: List[str], counts: List[int], draws: int, seed: int,
          oracle: str = UTILITY) -> Dict[str, Dict]:
    """A row for each number of candidates and each selection; their numbers are means over the draws.

    Raises:
        UserError: a number that the outputs do not reach.
    """
    candidates = by_model_score(outputs)
    held = len(candidates)
    if not 1 <= min(counts) <= max(counts) <= held:
        raise UserError(f"--numbers {','.join(map(str, counts))}: the file has {held} candidate(s) of each sentence; "
                        "generate with --candidates and --nbest of the largest number")
    found = [rouge_per_sentence(texts, references, MEASURES) for texts in tqdm(candidates, unit=" candidates")]
    scores = np.array([[scored[name] for name in MEASURES] for scored in found]).transpose(2, 0, 1)
    utilities = [pairwise(texts, UTILITY) for texts in zip(*candidates)]
    generator = np.random.default_rng(seed)
    rows = {}
    for size in counts:
        drawn = []
        for _ in range(draws if size < held else 1):
            order = generator.random((len(references), held)).argsort(axis=1)
            drawn.append(measure(scores, utilities, np.sort(order[:, :size], axis=1), oracle))
        for selection in SELECTIONS:
            mean = np.mean([one[selection] for one in drawn], axis=0)
            rows[f"{size} {selection}"] = {"candidates": size, "selection": selection,
                                           **dict(zip(MEASURES, mean.tolist()))}
    return rows


def plot(rows: Dict[str, Dict], file: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(MEASURES), figsize=(13, 4), layout="constrained")
    for axis, name in zip(axes, MEASURES):
        for selection, marker in zip(SELECTIONS, "osD^"):
            points = [(row["candidates"], row[name]) for row in rows.values() if row["selection"] == selection]
            label = "oracle (chosen with the reference)" if selection == "oracle" else selection
            axis.plot(*zip(*sorted(points)), marker=marker, label=label)
        axis.set(xlabel="candidates", title=name, xticks=sorted({row["candidates"] for row in rows.values()}))
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(SELECTIONS))
    figure.savefig(file, dpi=130)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", nargs="+", metavar="FILE", help="what fairseq-generate printed; shards of it")
    parser.add_argument("--references", metavar="FILE", help="score against these lines, not the T- lines")
    parser.add_argument("--numbers", type=numbers, default=[5, 10, 15, 20], metavar="N,M", help="default: 5,10,15,20")
    parser.add_argument("--oracle", choices=OFFERED, default=UTILITY,
                        help="as in evaluate.py (default: %(default)s; GENIE: rouge2)")
    parser.add_argument("--draws", type=count(1), default=10, help="random subsets that are averaged (default: 10)")
    parser.add_argument("--seed", type=int, default=1, help="of the subsets (default: 1)")
    parser.add_argument("--output", type=Path, default=Path("study-candidates"), help="files to write, without ending")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    outputs = read_generated(arguments.generated)
    references = aligned_lines(arguments.references, outputs) if arguments.references else outputs.references
    if references is None:
        raise UserError(f"{', '.join(arguments.generated)}: no T- lines; give --references FILE")
    rows = study(outputs, references, arguments.numbers, arguments.draws, arguments.seed,
                 arguments.oracle)
    said = (f"{text_table(rows, MEASURES, digits=2)}\n\n{len(references)} sentences, ROUGE F1 x 100, mean of "
            f"{arguments.draws} random subsets; MBR by {UTILITY}; the oracle reads the reference: the highest "
            f"{arguments.oracle}\n")
    write_rows(named(arguments.output, ".json"), rows)
    report(arguments.output, rows, said, plot)


if __name__ == "__main__":
    run_study(main)
