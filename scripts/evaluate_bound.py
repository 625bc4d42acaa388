#!/usr/bin/env python3
"""How likely a model finds a text: an upper bound on its negative log-likelihood, in nats a token and bits a byte.

    python scripts/evaluate_bound.py data-bin --path checkpoint.pt --draws 16
    python scripts/evaluate_bound.py lm-bin --path ddlm.pt --task diffusion_lm --given-positions 0:32

The bound is Kingma et al.'s (2021), of the process that starts from the embeddings themselves: reconstruction of the
tokens from the cleanest level, the diffusion term, the prior, and -log p of the length where the model predicts one; a
length that is given (--length-model given) is a condition of the bound. It is a mean over --draws times for each text,
evenly spread over all of them; the standard error is that of the mean over texts. Tokens count with their end of
sentence; bytes are those of the texts, whose subwords are joined, and a newline each.
"""

import argparse
import json
import logging
import math
import sys
from typing import Dict

import _environment  # noqa: F401  says what this Python lacks
import torch
from _checkpoint import add_arguments, batches, load
from _option_types import count
from _trace_page import Spelling
from tqdm import tqdm

from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import FIRST_WORD_PIECE
from diffusion_fairseq.metrics.report import text_table
from diffusion_fairseq.models.bound import Bound, nll_bound

TERMS = ("reconstruction", "diffusion", "prior", "length", "total")


def number_of_texts(task, arguments: argparse.Namespace) -> int:
    most = len(task.dataset(arguments.subset))
    return min(arguments.texts or most, most)


def measure(task, model, arguments: argparse.Namespace) -> Dict[str, Dict[str, float]]:
    """Each term's nats a token and its standard error, and the total's bits a byte."""
    texts, number = task.dataset(arguments.subset), number_of_texts(task, arguments)
    device = next(model.parameters()).device
    noise = Draws(torch.Generator(device).manual_seed(arguments.seed))
    u = (torch.randperm(number * arguments.draws, generator=torch.Generator().manual_seed(arguments.seed)) + 0.5)
    u = (u / len(u)).view(arguments.draws, -1)
    sums = {term: torch.zeros(number, dtype=torch.float64) for term in TERMS}
    tokens_of, size = torch.zeros(number, dtype=torch.float64), 0
    dictionary = task.target_dictionary
    marks = [dictionary.index(FIRST_WORD_PIECE)] if FIRST_WORD_PIECE in dictionary else []
    spelling = Spelling(dictionary, [dictionary.eos(), *marks])
    for batch in tqdm(batches(texts, arguments.batch_size, number), unit=" batches"):
        rows = batch["id"]
        source, target = (tensor.to(device) for tensor in (batch["net_input"]["src_tokens"], batch["target"]))
        for draw in u:
            with torch.inference_mode():
                bound: Bound = nll_bound(model, source, target, draw[rows], noise)
            for term in TERMS:
                sums[term][rows] += getattr(bound, term).cpu() / arguments.draws
        tokens_of[rows] = bound.count.cpu()
        size += sum(len(spelling.text(row.tolist()).encode()) + 1 for row in batch["target"])
    tokens = tokens_of.sum()
    found = {term: {"nats a token": (total.sum() / tokens).item(), "standard error": _error(total, tokens_of)}
             for term, total in sums.items()}
    found["total"]["bits a byte"] = sums["total"].sum().item() / math.log(2) / size
    return found


def _error(total: torch.Tensor, count: torch.Tensor) -> float:
    """The standard error of a ratio of sums over texts."""
    ratio = total.sum() / count.sum()
    return ((total - ratio * count).square().sum().sqrt() / count.sum()).item()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--texts", type=count(1), metavar="N", help="measure the first N texts (default: all)")
    parser.add_argument("--draws", type=count(1), default=8, help="times drawn for each text (default: 8)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers here")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    logging.disable(logging.INFO)  # of fairseq; warnings stay
    task, model = load(arguments)
    if task.dataset(arguments.subset).tgt is None:
        raise UserError(f"{arguments.data}: split {arguments.subset} has no targets")
    rows = measure(task, model, arguments)
    print(text_table(rows, ("nats a token", "standard error", "bits a byte"), digits=3))
    print(f"\n{number_of_texts(task, arguments)} texts of {arguments.subset}, {arguments.draws} draws each; an upper "
          "bound on the negative log-likelihood")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as out:
            json.dump(rows, out, indent=1)


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
