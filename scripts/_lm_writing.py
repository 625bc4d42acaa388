"""What language models write for the same prompts, by diffusion or token by token, and how the studies measure it."""

import argparse
import html
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch
from _checkpoint import build_bpe, setup
from _generated import Outputs
from _lm_evaluation import DATA, LIKELIHOOD, VARIETY, WHOLE, NGrams, Rows, Sample, Scoring, drawn, evaluate
from _lm_scorer import Scorer
from _option_types import count
from evaluate_lm import add_scoring, read_scoring
from fairseq import checkpoint_utils
from fairseq.search import Sampling
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor
from tqdm import tqdm

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.generator import DiffusionGenerator
from diffusion_fairseq.metrics import model_based
from diffusion_fairseq.metrics.ngram import read_corpus
from diffusion_fairseq.tasks.diffusion_lm import BREAK_MODES, DiffusionLMTask
from diffusion_fairseq.tasks.sampling_config import SamplingConfig

TASK = "diffusion_lm"
KINDS = ("unconditional", "prefix", "inpainting")
PROMPT_SEED = 1
COLUMNS = {**{key: LIKELIHOOD[key] for key in ("ar_nll", "mauve", "perplexity", "unknown")}, **VARIETY,
           **{key: WHOLE[key] for key in ("words", "duplicate", "seen")}, "seconds": ("seconds", 1)}
SETTINGS = ("subset", "bpe_model", "tokens_per_sample", "sample_break_mode", "texts", "samples", "batch_size")
PAGE = """<!doctype html><meta charset="utf-8"><title>Samples</title>
<style>body { font: 15px/1.5 sans-serif; max-width: 60rem; margin: 2rem auto; }
h2 { font-size: 1rem; margin-top: 2rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0; } th { font-weight: normal; opacity: .6; }
</style>
<p>What is given, and each system's continuation; words that come more than once in a text are marked.
"""
SCORING = ("scorer", "gguf", "mauve", "mauve_model", "scored", "max_tokens", "bos", "ngram_lines")


def given_positions(kind: str, length: int) -> str:
    """What is given of a sequence: nothing; its first half; its first and last quarter (DDLM, section 3.4)."""
    quarter = length // 4
    return {"unconditional": "none", "prefix": f"0:{length // 2}",
            "inpainting": f"0:{quarter},{length - quarter}:{length}"}[kind]


class Prompts(NamedTuple):
    """What is to be written, in batches whose targets are real texts."""

    kind: str
    task: DiffusionLMTask
    bpe: object
    batches: list[dict]

    def text(self, tokens: Tensor) -> str:
        line = self.task.target_dictionary.string(tokens)
        return line if self.bpe is None else self.bpe.decode(line)

    def rows(self, key: str) -> list[Tensor]:
        """The tokens of every prompt ("source") or real text ("target"), without padding."""
        pad = self.task.target_dictionary.pad()
        tensors = (batch["target"] if key == "target" else batch["net_input"]["src_tokens"] for batch in self.batches)
        return [row[row != pad] for tokens in tensors for row in tokens]

    def beginning(self, prompt: Tensor) -> Tensor:
        """The tokens of a prompt up to where something is to be written."""
        return prompt[: int((prompt == self.task.mask).int().argmax())]

    def end(self, prompt: Tensor) -> Tensor:
        """The tokens of a prompt after the last one that is to be written."""
        return prompt[int((prompt == self.task.mask).nonzero()[-1]) + 1 :]

    @property
    def prefixes(self) -> list[str]:
        return [self.text(self.beginning(prompt)) for prompt in self.rows("source")]

    @property
    def endings(self) -> list[str]:
        """What is given after the last token that is to be written."""
        return [self.text(self.end(prompt)) for prompt in self.rows("source")]

    @property
    def references(self) -> list[str]:
        return [self.text(row) for row in self.rows("target")]


class Written(NamedTuple):
    """candidates[j][i] is the j-th text for prompt i; how long they took, and in how many steps, the mean over texts
    (None: not by diffusion)."""

    candidates: list[list[str]]
    seconds: float
    steps: float | None


# ---- prompts

def add_prompts(parser: argparse.ArgumentParser) -> None:
    """The options of what is written and of how it is measured."""
    parser.add_argument("--bpe-model", type=Path, metavar="FILE",
                        help="sentencepiece model that turns tokens into text (without: tokens are words)")
    parser.add_argument("--subset", default="valid", help="split that prompts are made of (default: %(default)s)")
    parser.add_argument("--tokens-per-sample", type=count(4), default=64, metavar="N",
                        help="as in training (default: %(default)s)")
    parser.add_argument("--sample-break-mode", choices=BREAK_MODES, default="none",
                        help="as in training (default: %(default)s, blocks of text)")
    parser.add_argument("--texts", type=count(2), default=200, metavar="N",
                        help="prompts, drawn from the split (default: %(default)s; paper: 5000)")
    parser.add_argument("--samples", type=count(1), default=1, metavar="N",
                        help="texts for each prompt (default: %(default)s; paper: 5)")
    parser.add_argument("--batch-size", type=count(1), default=64, metavar="N",
                        help="prompts at a time (default: %(default)s)")
    add_scoring(parser)
    parser.add_argument("--ngram-lines", type=count(0), default=200_000, metavar="N",
                        help="lines of the training text, evenly spread over its first shard, that the n-gram model "
                             "learns from and 8-grams are looked for in; 0: neither (default: %(default)s)")
    parser.set_defaults(prefix_tokens=0, reference=DATA)


def load_prompts(arguments: argparse.Namespace, kind: str) -> Prompts:
    """The prompts of one of KINDS, the same ones whatever writes.

    Raises:
        UserError: data or subwords cannot be used, or the split has nothing to write.
    """
    length = arguments.tokens_per_sample
    task = setup(SimpleNamespace(
        task=TASK, data=arguments.data, seed=PROMPT_SEED, max_target_positions=length,
        given_positions=given_positions(kind, length), sample_break_mode=arguments.sample_break_mode))
    task.trains = False
    task.load_dataset(arguments.subset)
    dataset = task.dataset(arguments.subset)
    order = random.Random(PROMPT_SEED).sample(range(len(dataset)), len(dataset))
    wanted = (item for item in map(dataset.__getitem__, order) if (item["source"] == task.mask).any())
    items = sorted(islice(wanted, arguments.texts), key=lambda item: len(item["source"]))
    if len(items) < 2:
        raise UserError(f"{arguments.data}: split {arguments.subset} has {len(items)} texts for {kind}: give another "
                        "--subset")
    bpe = build_bpe(task, arguments.bpe_model)
    size = arguments.batch_size
    batches = [dataset.collater(items[first : first + size]) for first in range(0, len(items), size)]
    return Prompts(kind, task, bpe, batches)


# ---- texts

def by_diffusion(prompts: Prompts, model: torch.nn.Module, sampling: SamplingConfig) -> Written:
    """What a diffusion language model writes, `candidates` of the sampling for each prompt."""
    generator = DiffusionGenerator(model, prompts.task.target_dictionary, sampling, ends=prompts.task.ends)
    device = next(model.parameters()).device

    def write(batch: dict) -> list[list[Tensor]]:
        sample = {"id": batch["id"], "net_input": {"src_tokens": batch["net_input"]["src_tokens"].to(device)}}
        return [[text["tokens"] for text in found] for found in generator.generate([model], sample)]

    candidates, seconds = written(prompts, write)
    used = generator.steps_used
    return Written(candidates, seconds, sum(steps * texts for steps, texts in used.items()) / sum(used.values()))


def by_transformer(prompts: Prompts, path: Path, data: str, samples: int, top_p: float, seed: int) -> Written:
    """What fairseq's transformer_lm writes after the beginning of each prompt, by fairseq's sequence generator; a block
    of running text is as long as the prompt, its ends of sentence among its tokens."""
    (model,), *_ = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": data})
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    device, dictionary, mask = next(model.parameters()).device, prompts.task.target_dictionary, prompts.task.mask
    length = prompts.task.cfg.tokens_per_sample
    # The host stops at its `eos`, which would be in the middle of a block, or of what is given: here a token that
    # no text has.
    generator = SequenceGenerator(
        [model], dictionary, beam_size=samples, max_len_b=length, min_len=length, eos=mask,
        search_strategy=Sampling(dictionary, sampling_topp=top_p if top_p < 1 else -1.0))
    torch.manual_seed(seed)

    def write(batch: dict) -> list[list[Tensor]]:
        rows = [row[row != dictionary.pad()] for row in batch["net_input"]["src_tokens"]]
        given = torch.stack([prompts.beginning(row) for row in rows]).to(device)
        begin = torch.full((len(rows), 1), dictionary.eos(), device=device)
        found = generator.generate([model], {"net_input": {"src_tokens": begin}}, bos_token=dictionary.eos(),
                                   prefix_tokens=given if given.size(1) else None)
        return [[ended(text["tokens"][:-1].cpu(), len(row), given.size(1)) for text in texts]
                for texts, row in zip(found, rows)]

    def ended(tokens: Tensor, block: int, given: int) -> Tensor:
        if not prompts.task.ends:
            return tokens[:block]
        ends = (tokens[given:] == dictionary.eos()).nonzero()
        return tokens[: given + int(ends[0])] if len(ends) else tokens

    return Written(*written(prompts, write), None)


def by_causal(prompts: Prompts, writer: Scorer, samples: int, top_p: float, seed: int) -> Written:
    """What a causal language model of transformers writes after the beginning of each prompt: in a block of running
    text as many of its own tokens as are asked for of ours, else to its end of text."""
    model, tokenizer, _ = writer
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    ends, longest = prompts.task.ends, prompts.task.cfg.tokens_per_sample
    torch.manual_seed(seed)

    def write(batch: dict) -> list[list[tuple]]:
        rows = batch["net_input"]["src_tokens"]
        asked = [longest if ends else int(number) for number in (rows == prompts.task.mask).sum(dim=1)]
        prefixes = [prompts.text(prompts.beginning(row)) for row in rows]
        given = [tokenizer(prefix, add_special_tokens=False)["input_ids"] for prefix in prefixes]
        size = 1 + max(map(len, given))
        ids = torch.tensor([[begin] * (size - len(row)) + row for row in given], device=model.device)
        seen = torch.tensor([[place >= size - 1 - len(row) for place in range(size)] for row in given])
        found = model.generate(
            input_ids=ids, attention_mask=seen.long().to(ids.device), do_sample=True, temperature=1.0, top_k=0,
            top_p=top_p, num_return_sequences=samples, max_new_tokens=max(asked), pad_token_id=begin,
            min_new_tokens=0 if ends else max(asked))
        texts = found[:, size:].unflatten(0, (len(rows), samples)).tolist()
        return [[(prefix, known, tokens[:number]) for tokens in of_row]
                for prefix, known, number, of_row in zip(prefixes, given, asked, texts)]

    def text(found: tuple[str, list[int], list[int]]) -> str:
        """The prefix as it was, and what comes after it on the same line."""
        prefix, known, tokens = found
        before, after = (tokenizer.decode(one, skip_special_tokens=True, clean_up_tokenization_spaces=False)
                         for one in (known, known + tokens))
        return prefix + re.sub(r"\s+", " ", after[len(before) :])

    return Written(*written(prompts, write, text), None)


@torch.inference_mode()
def written(prompts: Prompts, write: Callable, text: Callable | None = None) -> tuple[list[list[str]], float]:
    """candidates[j][i], and the seconds that `write` took for all: it makes of a batch each prompt's tokens, or what
    `text` takes."""
    texts, seconds = [], 0.0
    for batch in tqdm(prompts.batches, desc=prompts.kind, unit=" batches", leave=False, disable=None):
        began = time.perf_counter()
        found = write(batch)
        seconds += time.perf_counter() - began
        texts += [[(text or prompts.text)(tokens) for tokens in of_prompt] for of_prompt in found]
    return [list(column) for column in zip(*texts)], seconds


# ---- measures

class Judge:
    """What texts are measured with: a causal language model, an n-gram model, statistics, real texts.

    Raises:
        UserError: a scorer cannot be used.
    """

    def __init__(self, arguments: argparse.Namespace):
        self.arguments = arguments
        self.scoring: Scoring = read_scoring(arguments)
        self.features: dict[str, np.ndarray] = {}

    def scores(self, name: str, prompts: Prompts, candidates: list[list[str]]) -> tuple[dict, dict[str, str]]:
        """The measures of texts (or of the real ones, called DATA), and the signatures behind them."""
        rows = Rows(prompts.prefixes, prompts.endings)
        rows.add(name, Outputs(candidates))
        scoring = self.scoring
        if scoring.mauve is not None and name != DATA:
            scoring = replace(scoring, data=self.features_of(prompts))
        train = self.ngrams if self.arguments.ngram_lines else None
        # As many texts of every row as there are prompts, and so real texts.
        table, signatures = evaluate(rows.rows, scoring, train, at_most=len(prompts.prefixes))
        return table[name], signatures

    @cached_property
    def ngrams(self) -> NGrams:
        """The n-gram model of the training text."""
        read = load_prompts(self.arguments, KINDS[0])
        _, lines = read.task.load_lines(read.task.cfg.train_subset, 1, False)
        rows = np.linspace(0, len(lines) - 1, min(self.arguments.ngram_lines, len(lines))).astype(int)
        shown = tqdm(rows.tolist(), desc="training text", unit=" lines", leave=False, disable=None)
        return NGrams(read_corpus(read.text(lines[row]) for row in shown))

    def features_of(self, prompts: Prompts) -> np.ndarray:
        """MAUVE's features of the real texts, up to a given ending, as those that are compared with them."""
        if prompts.kind not in self.features:
            model, tokenizer, _ = self.scoring.mauve
            rows = Rows(prompts.prefixes, prompts.endings)
            rows.add(DATA, Outputs([prompts.references]))
            texts = [sample.text for sample in drawn(rows.rows[DATA][0], self.scoring.texts, seed=1)]
            self.features[prompts.kind] = model_based.features(
                texts, model, tokenizer, max_tokens=self.scoring.max_tokens, batch_tokens=self.scoring.batch_tokens)
        return self.features[prompts.kind]


def quality(scores: dict) -> str:
    """The measure of likelihood that some texts have."""
    return "ar_nll" if scores.get("ar_nll") is not None else "perplexity"


def sample_page(prompts: Prompts, texts: dict[str, list[str]], number: int = 8) -> str:
    """A page (HTML) of some of the prompts, and under each what every system wrote (DDLM, table 4)."""
    rows = Rows(prompts.prefixes, prompts.endings)
    for name, found in texts.items():
        rows.add(name, Outputs([found]))
    parts = [PAGE]
    for place in np.linspace(0, len(prompts.prefixes) - 1, min(number, len(prompts.prefixes))).astype(int):
        given = " … ".join(filter(None, (prompts.prefixes[place], prompts.endings[place]))) or "nothing given"
        lines = "".join(f"<tr><th>{html.escape(name)}<td>{marked(found[place])}\n"
                        for name, (found,) in rows.rows.items())
        parts.append(f"<h2>{html.escape(given)}</h2>\n<table>\n{lines}</table>\n")
    return "".join(parts)


def marked(sample: Sample) -> str:
    """What was written, in HTML, words that the text has more than once marked."""
    words = sample.text.split()
    times = Counter(words)
    return " ".join(f"<mark>{html.escape(word)}</mark>" if times[word] > 1 else html.escape(word)
                    for word in words[sample.given_words :])
