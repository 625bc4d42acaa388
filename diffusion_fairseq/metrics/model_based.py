"""What a causal language model says of texts: their likelihood, and MAUVE from its hidden states.

Models and tokenizers are those of transformers, loaded by the caller and in evaluation mode; this file calls them and
imports none. MAUVE itself is computed by the mauve-text package, BERTScore by bert-score, which loads its model.
"""

from importlib.metadata import version
from pathlib import PurePath
from typing import Callable, Iterable, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from diffusion_fairseq.errors import UserError

MAX_TOKENS = 1024
BATCH_TOKENS = 2048
MAUVE_SEED = 25  # of the k-means clustering: mauve-text's default
INSTALL = "pip install 'diffusion-fairseq[metrics]'"
Progress = Callable[[Iterable], Iterable]


class TokenNLL(NamedTuple):
    """For each of S texts the sum of -ln p over its counted tokens, in nats, (S,) float64, and their number (S,)."""

    sums: np.ndarray
    counts: np.ndarray

    @property
    def per_token(self) -> Optional[float]:
        """Mean over all counted tokens of all texts: long texts weigh more. None where no token counts."""
        total = int(self.counts.sum())
        return float(self.sums.sum() / total) if total else None

    @property
    def per_text(self) -> Optional[float]:
        """Mean over texts of each one's mean, those without a counted token left out. None where that is all."""
        some = self.counts > 0
        return float((self.sums[some] / self.counts[some]).mean()) if some.any() else None


@torch.inference_mode()
def ar_nll(
    texts: Sequence[str],
    model,
    tokenizer,
    *,
    prefixes: Optional[Sequence[str]] = None,
    prefix_tokens: int = 0,
    max_tokens: int = MAX_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    bos: bool = False,
    progress: Progress = iter,
) -> TokenNLL:
    """AR-NLL (Dieleman et al., 2022; Balagansky and Gavrilov, 2023): -ln p of texts under a causal language model.

    Tokens are the model's own, without special ones. The first of a text is conditioned on and not counted, as in
    transformers' loss, unless `bos`; nor is an end of text. Tokens beyond `max_tokens` are dropped.

    Args:
        model, tokenizer: of transformers; the model returns `.logits` (B, L, V).
        prefixes: how each text begins. The tokens that a text shares with its prefix tokenized alone are conditioned
            on and not counted; one that reaches over the prefix's end counts.
        prefix_tokens: so many first tokens of every text are not counted.
        max_tokens: of a text; no more than the model has positions.
        batch_tokens: texts of about the same length are scored together, so many tokens with their padding.
        bos: put the tokenizer's token for the beginning in front of each text, and count the text's first token.
        progress: wraps the list of batches.
    Raises:
        UserError: no text, prefixes of another number, fewer than two tokens of a text, a tokenizer without bos.
    """
    if not len(texts) or (prefixes is not None and len(prefixes) != len(texts)):
        raise UserError(f"{len(texts)} texts with {len(prefixes or ())} prefixes: give texts, and one prefix for each")
    if bos and tokenizer.bos_token_id is None:
        raise UserError("the scorer's tokenizer has no token for the beginning of a text: score without one")
    begin = [tokenizer.bos_token_id] if bos else []
    tokens = tokenize(texts, tokenizer, token_limit(model, max_tokens) - len(begin))
    given = [max(prefix_tokens, 1 - len(begin))] * len(texts)
    if prefixes is not None:
        alone = tokenize(prefixes, tokenizer, max_tokens)
        given = [max(least, shared(row, prefix)) for least, row, prefix in zip(given, tokens, alone)]
    counts = np.array([max(len(row) - first, 0) for row, first in zip(tokens, given)])
    sums = np.zeros(len(texts))
    scored = np.flatnonzero(counts)
    rows = [begin + tokens[i] for i in scored]
    for batch in progress(length_batches([len(row) for row in rows], batch_tokens)):
        inputs, mask = padded([rows[i] for i in batch], model.device)
        logits = model(input_ids=inputs, attention_mask=mask).logits
        for place, i in enumerate(batch):
            first, last = len(rows[i]) - counts[scored[i]], len(rows[i])
            predicted = logits[place, first - 1 : last - 1].float()
            sums[scored[i]] = cross_entropy(predicted, inputs[place, first:last], reduction="none").double().sum()
    return TokenNLL(sums, counts)


@torch.inference_mode()
def features(
    texts: Sequence[str],
    model,
    tokenizer,
    *,
    max_tokens: int = MAX_TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    progress: Progress = iter,
) -> np.ndarray:
    """What MAUVE compares (Pillutla et al., 2021): the model's last hidden state at each text's last token, (S', D).

    As in mauve-text with GPT-2: without special tokens, and texts of no token left out. `model` may have a head, which
    is not run. The other arguments are those of `ar_nll`.
    """
    rows = [row for row in tokenize(texts, tokenizer, token_limit(model, max_tokens)) if row]
    found = [np.empty(0, dtype=np.float32)] * len(rows)
    for batch in progress(length_batches([len(row) for row in rows], batch_tokens)):
        inputs, mask = padded([rows[i] for i in batch], model.device)
        states = model.base_model(input_ids=inputs, attention_mask=mask).last_hidden_state
        for place, i in enumerate(batch):
            found[i] = states[place, len(rows[i]) - 1].float().cpu().numpy()
    return np.stack(found) if found else np.empty((0, 0), dtype=np.float32)


def mauve(found: np.ndarray, reference: np.ndarray, seed: int = MAUVE_SEED) -> float:
    """MAUVE, 0 to 1 (as the reference), of two sets of `features`, with mauve-text's defaults (Pillutla et al., 2021).

    Raises:
        UserError: mauve-text is not installed, or a set has fewer than two texts.
    """
    check_mauve()
    import mauve as mauve_text

    if min(len(found), len(reference)) < 2:
        raise UserError(f"MAUVE of {len(found)} texts against {len(reference)}: each side needs two with a token")
    return float(mauve_text.compute_mauve(p_features=reference, q_features=found, seed=seed, verbose=False).mauve)


def check_mauve() -> None:
    """UserError where mauve-text is not installed or does not import."""
    try:
        import mauve  # noqa: F401
    except ImportError as error:
        raise UserError(f"MAUVE needs mauve-text ({error}): {INSTALL}") from None


def mauve_signature(seed: int = MAUVE_SEED) -> str:
    """The settings and the version that a score of MAUVE depends on, to print beside it."""
    return f"buckets:texts/10|scale:5|seed:{seed}|mauve-text:{version('mauve-text')}"


def load_bert_scorer(name: str, layer: Optional[int] = None, device: Optional[str] = None):
    """bert-score's scorer: no weights by frequency, no rescaling with a baseline.

    Args:
        name: a folder, or a name on the hub; what is cached needs no network.
        layer: whose hidden states are compared; None: the one that bert-score knows for a model of this name.
        device: None: a GPU where there is one.
    Raises:
        UserError: a package or the model is missing, or no layer is known.
    """
    try:
        from bert_score import BERTScorer
        from bert_score.utils import model2layers
    except ImportError as error:
        raise UserError(f"BERTScore needs bert-score ({error}): {INSTALL}") from None
    known = {key.rpartition("/")[2]: number for key, number in model2layers.items()}
    layer = known.get(PurePath(name).name) if layer is None else layer
    if layer is None:
        raise UserError(f"bert-score knows no layer for {name}: give one, such as 9 of a model of 12")
    try:
        scorer = BERTScorer(model_type=name, num_layers=layer, idf=False, rescale_with_baseline=False, device=device)
    except (OSError, ValueError, AssertionError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UserError(f"BERTScore {name}: {said}; without network, copy config.json, the tokenizer's files and the "
                        "weights into a folder and name that") from None
    # A tokenizer that knows no limit has one that does not fit its own arithmetic.
    limit = getattr(scorer._model.config, "max_position_embeddings", MAX_TOKENS)
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, limit)
    return scorer


def bert_score(hypotheses: Sequence[str], references: Sequence[str], scorer, batch_size: int = 64) -> np.ndarray:
    """F1 of BERTScore (Zhang et al., 2020), (S,) float64, as the bert-score package defines it; 0 for an empty text.

    Args:
        scorer: of `load_bert_scorer`.
    Raises:
        UserError: unequal numbers of texts.
    """
    if len(hypotheses) != len(references):
        raise UserError(f"BERTScore: {len(hypotheses)} hypotheses, but {len(references)} references")
    scores = np.zeros(len(hypotheses))
    some = [i for i, texts in enumerate(zip(hypotheses, references)) if all(text.strip() for text in texts)]
    if some:
        found = scorer.score([hypotheses[i] for i in some], [references[i] for i in some], batch_size=batch_size)
        scores[some] = found[2].double().cpu().numpy()
    return scores


def bert_score_signature(scorer) -> str:
    """The model, the settings and the version that a BERTScore depends on, to print beside it."""
    model = PurePath(scorer.model_type).name
    return f"model:{model}|layer:{scorer.num_layers}|idf:no|rescaled:no|bert-score:{version('bert-score')}"


def tokenize(texts: Sequence[str], tokenizer, max_tokens: int) -> List[List[int]]:
    """The first tokens of each text, special ones not added."""
    if not len(texts):
        return []
    return tokenizer(list(texts), add_special_tokens=False, truncation=True, max_length=max_tokens)["input_ids"]


def token_limit(model, max_tokens: int) -> int:
    """`max_tokens`, or the model's number of positions where that is smaller. UserError: below 2."""
    if max_tokens < 2:
        raise UserError(f"texts cut to {max_tokens} tokens: at least 2, the first of which is conditioned on")
    return min(max_tokens, getattr(model.config, "max_position_embeddings", max_tokens))


def shared(row: Sequence[int], prefix: Sequence[int]) -> int:
    """How many first tokens two texts have in common."""
    differ = (i for i, (ours, theirs) in enumerate(zip(row, prefix)) if ours != theirs)
    return next(differ, min(len(row), len(prefix)))


def length_batches(lengths: Sequence[int], batch_tokens: int) -> List[List[int]]:
    """Places of rows of about the same length, the longest first, so that a memory too small shows at once.

    A batch has at most `batch_tokens` tokens with its padding, or one row that has more.
    """
    batches: List[List[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def padded(rows: Sequence[Sequence[int]], device) -> tuple[Tensor, Tensor]:
    """(B, L) tokens, padded on the right, where a causal model does not look, and their mask."""
    tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
    return tokens.to(device), mask.to(device)
