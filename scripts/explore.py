#!/usr/bin/env python3
"""Look into the denoising: one HTML page, which needs no network, of what every step did to every candidate.

    python scripts/explore.py data-bin --path genie.pt --diffusion-steps 20 --candidates 5
    python scripts/explore.py data-bin --path genie.pt --input sources.txt --bpe-model sentencepiece.model
    python scripts/explore.py lm-bin --path ddlm.pt --task diffusion_lm --given-positions 0:16 --solver euler

The page has a slider over the steps, the text after each, its tokens coloured by their probability, those that switched
marked; the curves of entropy, switches and the norm of the estimate of x0; where early exit would have ended; sources,
references and scores. Its keys: left and right for the step, space to play, [ and ] for the sentence, / to search.
"""

import argparse
import logging
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import _environment  # noqa: F401  says what this Python lacks
import torch
from _checkpoint import add_arguments, add_sampling_arguments, batches, load, load_model, sampling_config, setup
from _generated import read_lines
from _option_types import count
from _trace import TracingGenerator
from _trace_page import Spelling, Strings, coded, page
from _typed import WHERE, encoder, find_bpe_model
from tqdm import tqdm

from diffusion_fairseq.data.typed_lines import mostly_unknown
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics.overlap import DEFAULT_ROUGE_TYPES, rouge_per_sentence
from diffusion_fairseq.tasks.sampling_config import DEFAULT_STEPS, SamplingConfig

TEMPLATE = "explore.html"


def typed(task, arguments: argparse.Namespace):
    """The lines of --input as a dataset of sources.

    Raises:
        UserError: there is no line, or most words are unknown.
    """
    lines = [line for line in read_lines(str(arguments.input)) if line.strip()]
    model = arguments.bpe_model or find_bpe_model(arguments.path, arguments.data)
    tokens = list(map(encoder(task, model), lines))
    if not tokens:
        raise UserError(f"{arguments.input} holds no line")
    if mostly_unknown(tokens, task.source_dictionary):
        raise UserError(f"{arguments.input} holds words that the dictionary lacks: give --bpe-model")
    return task.build_dataset_for_inference(tokens, [len(line) for line in tokens])


class Pages:
    """Turns what is generated into what the page shows.

    Args:
        task: that the checkpoint was loaded with.
        generator: of the traces.
    """

    def __init__(self, task, generator: TracingGenerator):
        hidden = generator.symbols_to_strip_from_output - {task.target_dictionary.eos()}
        self.task, self.source = task, Spelling(task.source_dictionary, hidden)
        self.target, self.strings = Spelling(task.target_dictionary, hidden), Strings()

    def sentence(self, number: int, source: List[int], target: Optional[List[int]], found: List[Dict]) -> Dict:
        """One source with its candidates, best score first."""
        end, prompts = self.task.target_dictionary.eos(), self.task.prompts
        source, target = (self._ended(tokens, end) for tokens in (source, target or []))
        candidates = [{"score": round(one["score"], 3), **coded(one["trace"], self._number)} for one in found]
        shown = {"number": number + 1, "candidates": candidates,
                 "source": self.source.prompt(source, self.task.mask) if prompts else self.source.text(source)}
        if target:
            shown["reference"] = self.target.text(target)
        if target and not prompts:
            texts = [self.target.text(self._ended(one["tokens"].tolist(), end)) for one in found]
            scores = rouge_per_sentence(texts, [shown["reference"]] * len(texts))
            for place, candidate in enumerate(candidates):
                candidate["rouge"] = [round(scores[name][place], 1) for name in DEFAULT_ROUGE_TYPES]
        return shown

    def _number(self, token: int) -> int:
        return self.strings(self.target[token])

    def _ended(self, tokens: List[int], end: int) -> List[int]:
        """Tokens without padding and the end of sentence at their end."""
        tokens = [token for token in tokens if token != self.task.target_dictionary.pad()]
        return tokens[:-1] if tokens and tokens[-1] == end else tokens


def explore(task, model, texts, sampling: SamplingConfig, arguments: argparse.Namespace) -> Dict[str, Any]:
    """Everything the page shows of the first texts of a dataset."""
    generator = TracingGenerator(model, task.target_dictionary, sampling, ends=task.ends)
    pages, sentences = Pages(task, generator), []
    device = next(model.parameters()).device
    for batch in tqdm(batches(texts, arguments.batch_size, arguments.texts), unit=" batches"):
        source = batch["net_input"]["src_tokens"]
        with torch.inference_mode():
            found = generator.generate([model], {"net_input": {"src_tokens": source.to(device)}, "id": batch["id"]})
        targets = [None] * len(found) if batch["target"] is None else batch["target"].tolist()
        sentences += map(pages.sentence, batch["id"].tolist(), source.tolist(), targets, found)
    settings = [Path(arguments.path).name, f"{sampling.solver}, {sampling.sampling_grid} grid"]
    settings += ["clamping"] if sampling.clamping else []
    settings += [f"patience {sampling.exit_patience}", f"seed {sampling.seed}"]
    return {"settings": settings, "times": [round(level.t.item(), 3) for level in generator.levels[:-1]],
            "prompts": task.prompts, "strings": list(pages.strings.places),
            "sentences": sorted(sentences, key=lambda sentence: sentence["number"])}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--input", type=Path, metavar="FILE", help="sources, one a line, in place of a split")
    parser.add_argument("--bpe-model", type=Path, metavar="FILE",
                        help=f"sentencepiece model that splits --input (default: {WHERE})")
    parser.add_argument("--texts", type=count(1), default=100, help="the first so many texts (default: 100)")
    add_sampling_arguments(parser, DEFAULT_STEPS)
    parser.add_argument("--candidates", type=count(1), default=5, help="for each source (default: 5)")
    parser.add_argument("--exit-patience", type=count(1), default=10, metavar="STEPS",
                        help="show where early exit with so much patience would end (default: 10)")
    parser.add_argument("--output", type=Path, default=Path("explore.html"), help="page to write")
    arguments = parser.parse_args()
    if arguments.input is not None and arguments.given_positions is not None:
        parser.error("--given-positions is of a split: in a line of --input every word but <mask> is given")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    logging.disable(logging.INFO)  # of fairseq; warnings stay
    if arguments.input is None:
        task, model = load(arguments)
        texts = task.dataset(arguments.subset)
    else:
        task = setup(arguments)
        model = load_model(task, arguments.path)
        texts = typed(task, arguments)
    sampling = sampling_config(arguments, candidates=arguments.candidates, exit_patience=arguments.exit_patience)
    if not len(texts):
        raise UserError("no text to generate from: give a split that holds some")
    found = explore(task, model, texts, sampling, arguments)
    arguments.output.write_text(page(TEMPLATE, found), encoding="utf-8")
    print(f"{arguments.output}: {len(found['sentences'])} sentences, {arguments.candidates} candidates, "
          f"{len(found['times'])} steps, {arguments.output.stat().st_size / 1e3:,.0f} kB")


if __name__ == "__main__":
    try:
        main()
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
