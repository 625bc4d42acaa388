"""The rows of an evaluation of language models: each system's samples, and their measures beside the real text's."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version

import numpy as np
from _generated import Outputs, numbered_lines, read_lines
from _lm_scorer import Scorer
from tqdm import tqdm

from diffusion_fairseq.errors import UserError
from diffusion_fairseq.metrics import diversity, model_based, ngram

# columns of the three tables: title and digits
LIKELIHOOD = {
    "ar_nll": ("AR-NLL", 3),
    "ar_nll_text": ("AR-NLL by text", 3),
    "tokens": ("tokens", 0),
    "mauve": ("MAUVE", 3),
    "perplexity": ("n-gram perplexity", 1),
    "unknown": ("unknown %", 1),
}
VARIETY = {
    "dist1": ("dist-1 %", 1),
    "dist2": ("dist-2 %", 1),
    "dist3": ("dist-3 %", 1),
    "self_bleu": ("self-BLEU", 1),
    "entropy": ("entropy bits", 2),
    "zipf": ("Zipf", 2),
    "dist1_among": ("dist-1 among %", 1),
    "dist2_among": ("dist-2 among %", 1),
    "dist3_among": ("dist-3 among %", 1),
}
WHOLE = {
    "texts": ("texts", 0),
    "words": ("words", 1),
    "empty": ("empty %", 1),
    "duplicate": ("duplicate %", 1),
    "seen": ("seen 8-grams %", 2),
}
SEEN_NGRAM = 8
DATA = "data"
UNKNOWN = "<unk>"  # what a model of words writes for every word that it does not have
SUBWORD = "\u2581"  # sentencepiece's blank


@dataclass(frozen=True)
class Sample:
    """A text up to a given ending, and the prefix that it was given ("": none)."""

    text: str
    prefix: str = ""

    @property
    def given_words(self) -> int:
        """Words of the text that its prefix has in full: the prefix may end within a word."""
        goes_on = self.text[len(self.prefix) :][:1].strip() and self.prefix[-1:].strip()
        return len(self.prefix.split()) - bool(goes_on)

    @property
    def written(self) -> str:
        """The words beyond the prefix."""
        return " ".join(self.text.split()[self.given_words :])


@dataclass
class Rows:
    """Systems by name: rows[name][j][i] is the j-th sample for prompt i, which has given a prefix and an ending."""

    prefixes: list[str] | None = None
    endings: list[str] | None = None
    continuations: bool = False
    max_words: int | None = None
    rows: dict[str, list[list[Sample]]] = field(default_factory=dict)

    def add(self, name: str, outputs: Outputs) -> None:
        """Add a system.

        Raises:
            UserError: the name comes twice, or the prefixes are not those of the texts.
        """
        if name in self.rows:
            raise UserError(f"two systems are called {name!r}: choose other names in --name and --system")
        if self.prefixes is not None and len(outputs) != len(self.prefixes):
            raise UserError(f"{name}: {len(outputs)} texts, but there are {len(self.prefixes)} prefixes")
        prefixes, endings = (given or [""] * len(outputs) for given in (self.prefixes, self.endings))
        self.rows[name] = [
            [self.sample(f"{name}, text {i + 1}", *row) for i, row in enumerate(zip(texts, prefixes, endings))]
            for texts in outputs.candidates
        ]

    def sample(self, where: str, text: str, prefix: str, ending: str = "") -> Sample:
        text = f"{prefix} {text.strip()}".strip() if self.continuations else text.strip()
        if not text.startswith(prefix):
            raise UserError(f"{where} does not begin with its prefix {prefix[:40]!r}: give the prefixes as the model "
                            "wrote them, or --continuations where the texts do not repeat them")
        if text.endswith(ending, len(prefix)):  # a system that was not given it has written all that it has
            text = text.removesuffix(ending).rstrip()
        if self.max_words is not None and len(text.split()) > self.max_words:
            text, prefix = " ".join(text.split()[: self.max_words]), " ".join(prefix.split())
            prefix = prefix if text.startswith(prefix) else text
        return Sample(text, prefix)


@dataclass(frozen=True)
class Scoring:
    """How texts are scored by a language model; what `model_based.ar_nll` takes, how many texts (None: all), and the
    features of real text for MAUVE, where that is no row."""

    scorer: Scorer | None = None
    prefix_tokens: int = 0
    max_tokens: int = model_based.MAX_TOKENS
    batch_tokens: int = model_based.BATCH_TOKENS
    bos: bool = False
    texts: int | None = None
    mauve: Scorer | None = None
    data: np.ndarray | None = None


@dataclass(frozen=True)
class NGrams:
    """Training text, and the n-gram model of it, which is made when it is first asked for.

    `types` is how many different words UNKNOWN stands for there. They share its probability evenly, as those of the
    n-gram model's own class of unknown words do: with all of it for each, UNKNOWN would be the likeliest word.
    """

    corpus: ngram.Corpus
    order: int = 3
    types: int = 1

    @cached_property
    def model(self) -> ngram.KneserNey:
        return ngram.kneser_ney(self.corpus, self.order)

    def log_probabilities(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Those of `ngram.log_probabilities`, UNKNOWN's for one of the words that it stands for."""
        one = math.log(self.types)
        return [found - one * np.array([word == UNKNOWN for word in text.split()], dtype=float)
                for found, text in zip(ngram.log_probabilities(self.model, texts), texts)]

    def unknown_share(self, texts: Sequence[str]) -> float | None:
        """Share (0 to 1) of the words that are UNKNOWN, or that the n-gram model does not know."""
        known = {word: code for word, code in self.model.vocabulary.items() if word != UNKNOWN}
        return ngram.unknown_share(self.model._replace(vocabulary=known), texts)


def read_words(path: str) -> frozenset[str]:
    """The words of a model's dict.txt.

    Raises:
        UserError: they are subwords.
    """
    words = frozenset(line.split(maxsplit=1)[0] for line in read_lines(path) if line.strip())
    if any(word.startswith(SUBWORD) for word in words):
        raise UserError(f"{path}: a dictionary of subwords, of which a model has every text")
    return words


def as_known(text: str, words: frozenset[str] | None) -> str:
    """A text as a model of these words reads it; None: as it is."""
    return text if words is None else " ".join(word if word in words else UNKNOWN for word in text.split())


def read_ngrams(path: str, order: int = 3, words: frozenset[str] | None = None) -> NGrams:
    """Training text, one a line, as a model of these words reads it."""
    replaced: set[str] = set()

    def read(line: str) -> str:
        if words is not None:
            replaced.update(word for word in line.split() if word not in words)
        return as_known(line, words)

    return NGrams(ngram.read_corpus(read(line) for _, line in numbered_lines(path)), order, max(1, len(replaced)))


def evaluate(
    rows: dict[str, list[list[Sample]]],
    scoring: Scoring,
    train: NGrams | None = None,
    at_most: int = 1000,
    seed: int = 1,
) -> tuple[dict[str, dict[str, float | None]], dict[str, str]]:
    """The measures of each row, and the settings and versions behind them.

    Args:
        rows: `Rows.rows`; the row called DATA is what MAUVE compares the others with.
        train: for the n-gram perplexity and for what samples repeat of it.
        at_most: texts of each row behind the measures that depend on their number, of every row as many.
        seed: of the draw of texts.
    """
    flat = {name: [sample for column in columns for sample in column] for name, columns in rows.items()}
    number = min([at_most, *map(len, flat.values())])
    signatures = {}
    table = {name: {**whole(samples), **variety(drawn(samples, number, seed)), **among(rows[name])}
             for name, samples in flat.items()}
    if scoring.scorer is not None or scoring.mauve is not None:
        scored = {name: drawn(samples, scoring.texts, seed) for name, samples in flat.items()}
        signatures.update(add_likelihood(table, scored, scoring))
        signatures.update(add_mauve(table, scored, scoring))
    if train is not None:
        signatures.update(add_ngram(table, flat, train))
    signatures["variety"] = f"dist,self-bleu,entropy,zipf of {number} texts|seed:{seed}|words:blank,case kept"
    signatures["self-bleu"] = "each text against all others|orders:4|smooth:exp|eff:yes|mean over texts"
    if any(len(columns) > 1 for columns in rows.values()):
        signatures["among"] = "dist-n of the samples of one prompt together|mean over prompts"
    return table, signatures


def whole(samples: Sequence[Sample]) -> dict[str, float]:
    """What needs all texts of a row; shares x 100."""
    texts = [sample.written for sample in samples]
    return {
        "texts": len(texts),
        "words": diversity.mean_words(texts),
        "empty": 100 * diversity.empty_share(texts),
        "duplicate": 100 * diversity.duplicate_share(texts),
    }


def variety(samples: Sequence[Sample]) -> dict[str, float | None]:
    """What depends on how many texts there are; shares x 100."""
    texts = [sample.written for sample in samples]
    return {
        **{f"dist{n}": 100 * diversity.distinct(texts, n) for n in (1, 2, 3)},
        "self_bleu": diversity.self_bleu_of_corpus(texts) if len(texts) > 1 else None,
        "entropy": diversity.token_entropy(texts),
        "zipf": diversity.zipf_coefficient(texts),
    }


def among(columns: list[list[Sample]]) -> dict[str, float]:
    """dist-n x 100 of the samples of one prompt together, where there are several."""
    if len(columns) < 2:
        return {}
    sets = [[sample.written for sample in samples] for samples in zip(*columns)]
    return {f"dist{n}_among": 100 * diversity.distinct_among(sets, n) for n in (1, 2, 3)}


def add_likelihood(table: dict, scored: dict[str, list[Sample]], scoring: Scoring) -> dict[str, str]:
    """Add AR-NLL to the rows; returns its signature."""
    if scoring.scorer is None:
        return {}
    model, tokenizer, name = scoring.scorer
    for row, samples in scored.items():
        found = model_based.ar_nll(
            [sample.text for sample in samples], model, tokenizer, prefixes=[sample.prefix for sample in samples],
            prefix_tokens=scoring.prefix_tokens, max_tokens=scoring.max_tokens, batch_tokens=scoring.batch_tokens,
            bos=scoring.bos, progress=shown(f"AR-NLL of {row}"),
        )
        table[row].update(ar_nll=found.per_token, ar_nll_text=found.per_text, tokens=int(found.counts.sum()))
    given = f"first {scoring.prefix_tokens}" if scoring.prefix_tokens else "none" if scoring.bos else "first"
    prefixes = ",prefixes" if any(sample.prefix for samples in scored.values() for sample in samples) else ""
    limit = model_based.token_limit(model, scoring.max_tokens)
    return {"ar-nll": f"nats a token|mean over all tokens (by text: mean of the texts' means)|scorer:{name}|"
                      f"not counted:{given}{prefixes}|bos:{'yes' if scoring.bos else 'no'}|tokens:{limit} at most|"
                      f"texts:{scoring.texts or 'all'}|transformers:{version('transformers')}"}


def add_mauve(table: dict, scored: dict[str, list[Sample]], scoring: Scoring) -> dict[str, str]:
    """Add MAUVE against real text to the rows but DATA; returns its signature."""
    if scoring.mauve is None:
        return {}
    model, tokenizer, name = scoring.mauve
    found = {}
    for row, samples in scored.items():
        found[row] = model_based.features(
            [sample.text for sample in samples], model, tokenizer, max_tokens=scoring.max_tokens,
            batch_tokens=scoring.batch_tokens, progress=shown(f"features of {row}"),
        )
    data = found[DATA] if scoring.data is None else scoring.data
    for row in found.keys() - {DATA}:
        # a row of empty texts keeps its other measures
        table[row]["mauve"] = model_based.mauve(found[row], data) if len(found[row]) > 1 else None
    counts = ",".join(f"{row} {len(rows)}" for row, rows in found.items())
    return {"mauve": f"against:{DATA}|features:{name}, last token, prefixes included, endings not|texts:{counts}|"
                     f"{model_based.mauve_signature()}"}


def add_ngram(table: dict, flat: dict[str, list[Sample]], train: NGrams) -> dict[str, str]:
    """Add the n-gram model's perplexity and what samples repeat of its text; returns the signatures."""
    model = train.model
    for row, samples in flat.items():
        log_probs = train.log_probabilities([sample.text for sample in samples])
        written = [sample.written for sample in samples]
        unknown, seen = train.unknown_share(written), ngram.seen_share(written, train.corpus, SEEN_NGRAM)
        table[row].update(
            perplexity=ngram.perplexity([found[s.given_words :] for found, s in zip(log_probs, samples)]),
            unknown=None if unknown is None else 100 * unknown,
            seen=None if seen is None else 100 * seen,
        )
    return {"n-gram": f"a word, over all words|interpolated Kneser-Ney|order:{train.order}|words:blank,case kept|"
                      f"known:{len(model.vocabulary)} that come twice in {int((train.corpus.codes >= 0).sum())}|"
                      f"unknown:class/{model.unknown_types},{UNKNOWN}/{train.types}|beginning given, end not predicted",
            "seen": f"share of {SEEN_NGRAM}-grams of words that stand in a line of the training text"}


def drawn(samples: list[Sample], number: int | None, seed: int) -> list[Sample]:
    """So many of the samples, in their order; None, or no fewer than there are: all."""
    if number is None or number >= len(samples):
        return samples
    return [samples[i] for i in sorted(random.Random(seed).sample(range(len(samples)), number))]


def shown(title: str) -> Callable:
    """A progress bar on stderr, where that is a terminal."""
    return partial(tqdm, desc=title, unit="batch", leave=False, disable=None)
