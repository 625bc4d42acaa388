"""A generator that writes down what every reverse step did to every candidate."""

from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from diffusion_fairseq.denoiser import Denoiser, Rows
from diffusion_fairseq.early_exit import Live
from diffusion_fairseq.generator import DiffusionGenerator, Drafts
from diffusion_fairseq.models.base import in_chunks


class Trace(NamedTuple):
    """What K steps did to the n positions of one candidate.

    tokens (K, n), rounded after each step; text (K,), how many of them are words of the text, which ends there;
    confidence (K, n), their probabilities, 0 to 1; given (n,) bool, True where no token is generated; entropy (K,) in
    nats and norm (K,) of the estimate of x0, means over the generated positions; exit, the step after which early exit
    ends, None where it does not.
    """

    tokens: Tensor
    text: List[int]
    confidence: Tensor
    given: Tensor
    entropy: Tensor
    norm: Tensor
    exit: Optional[int]


class Step(NamedTuple):
    """What one step did to the R rows of a batch: tokens, rounded, and confidence (R, L); entropy and norm (R,)."""

    tokens: Tensor
    confidence: Tensor
    entropy: Tensor
    norm: Tensor


class TracingGenerator(DiffusionGenerator):
    """Hypotheses as the plain generator's, each with its `trace`.

    All steps are taken: --exit-patience and --exit-entropy only say where early exit would have ended.
    """

    def watched(self, rows: Rows) -> Iterator[Tuple[Denoiser, Step]]:
        """What every step did to some rows, and what estimated."""
        generated, every = rows.generated, torch.ones_like(rows.keys, dtype=torch.bool)
        for denoise, _, state in self.trajectory(rows):
            tokens = denoise.tokens(state.pred_x0)
            norm = (state.pred_x0.norm(dim=-1) * generated).sum(dim=1) / generated.sum(dim=1).clamp(min=1)
            yield denoise, Step(tokens, confidence(denoise, tokens), denoise.mean_entropy(every), norm)

    def traces(self, steps: Sequence[Step], rows: Rows) -> List[Trace]:
        """What some steps did to each row; no exit."""
        tokens, sure, entropy, norm = (torch.stack(found).cpu() for found in zip(*steps))
        drafts = Drafts(tokens[-1], torch.zeros(tokens.shape[1:]), torch.full((len(rows.keys),), len(steps)), tokens)
        hypotheses = super()._hypotheses(drafts, rows)
        given, begins = ~rows.generated.cpu(), rows.memory.begins(len(hypotheses)).tolist()
        texts = [slice(begin, end) for begin, end in zip(begins, rows.lengths.tolist())]
        return [Trace(tokens[:, row, text], [self._words(step["tokens"]) for step in hypotheses[row]["history"]],
                      sure[:, row, text], given[row, text], entropy[:, row], norm[:, row], None)
                for row, text in enumerate(texts)]

    def _denoise(self, rows: Rows) -> Drafts:
        live = Live.begin(len(rows.keys), rows.width, rows.keys.device)
        exits, steps = torch.zeros_like(rows.keys), []
        for number, (denoise, step) in enumerate(self.watched(rows), start=1):
            live = live.after(step.tokens)
            exits = torch.where(self._leaves(denoise, live, exits == 0), number, exits)
            steps.append(step)
        drafts = Drafts.blank(rows, len(steps), self.dictionary.pad(), retain_history=True)
        drafts.history.copy_(torch.stack([step.tokens for step in steps]))
        self._keep(drafts, live, live.active, denoise, len(steps))
        exits = exits.masked_fill(exits == len(steps), 0).tolist()
        self.record = [trace._replace(exit=end or None) for trace, end in zip(self.traces(steps, rows), exits)]
        return drafts

    def _leaves(self, denoise: Denoiser, live: Live, there: Tensor) -> Tensor:
        """Which of the rows (R,) that are still there early exit would let go now."""
        patience = self.sampling.exit_patience
        return self._sure(denoise, there & (live.unchanged >= patience)) if patience else torch.zeros_like(there)

    def _hypotheses(self, drafts: Drafts, rows: Rows) -> List[Dict[str, Any]]:
        found = super()._hypotheses(drafts, rows)
        return [{**hypothesis, "trace": trace} for hypothesis, trace in zip(found, self.record)]

    def _words(self, tokens: Tensor) -> int:
        """How many tokens (n,) there are before the end of sentence that ends them."""
        return len(tokens) - int(self.ends and len(tokens) > 0 and tokens[-1] == self.dictionary.eos())


def confidence(denoise: Denoiser, tokens: Tensor) -> Tensor:
    """The probability (R, L) of tokens (R, L) at the last evaluation, forbidden ones left out: as the network predicts
    it, or as the estimate of x0 rounds before clamping; 0 at padding."""
    model, packing = denoise.model, denoise.rows.packing
    hidden = packing.pack(denoise.estimate) if denoise.hidden is None else denoise.hidden

    def of(part: Tensor, chosen: Tensor) -> Tensor:
        scores = model.logits(part).masked_fill(denoise.forbidden, -torch.inf)
        return scores.softmax(dim=-1).gather(1, chosen[:, None]).squeeze(1)

    return packing.unpack(in_chunks(of, model.embedding.num_embeddings, hidden, packing.pack(tokens)))
