"""A generator that writes down what every reverse step did to every candidate."""

from typing import Any, Dict, List, NamedTuple, Optional

import torch
from torch import Tensor

from diffusion_fairseq.denoiser import Denoiser, Rows
from diffusion_fairseq.early_exit import Live
from diffusion_fairseq.generator import DiffusionGenerator, Drafts
from diffusion_fairseq.models.base import in_chunks
from diffusion_fairseq.text.lengths import lengths_to_mask


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


class _Record(NamedTuple):
    """The same of all R rows of a batch: confidence (K, R, L), given (R, L), entropy and norm (K, R), exits (R,), 0
    where early exit does not end."""

    confidence: Tensor
    given: Tensor
    entropy: Tensor
    norm: Tensor
    exits: Tensor


class TracingGenerator(DiffusionGenerator):
    """Hypotheses as the plain generator's, each with its `trace`.

    All steps are taken: --exit-patience and --exit-entropy only say where early exit would have ended.
    """

    def _denoise(self, rows: Rows) -> Drafts:
        mask = lengths_to_mask(rows.lengths, rows.width)
        given = rows.memory.given(*mask.shape)
        given = torch.zeros_like(mask) if given is None else given
        generated = mask & ~given
        live = Live.begin(len(rows.keys), rows.width, rows.keys.device)
        exits, steps = torch.zeros_like(rows.keys), []
        for number, (denoise, _, state) in enumerate(self.trajectory(rows), start=1):
            live = live.after(denoise.tokens(state.pred_x0))
            exits = torch.where(self._leaves(denoise, live, exits == 0), number, exits)
            norm = (state.pred_x0.norm(dim=-1) * generated).sum(dim=1) / generated.sum(dim=1).clamp(min=1)
            steps.append((live.tokens, confidence(denoise, live.tokens), denoise.mean_entropy(live.active), norm))
        tokens, sure, entropy, norm = (torch.stack(found) for found in zip(*steps))
        drafts = Drafts.blank(rows, len(steps), self.dictionary.pad(), retain_history=True)
        drafts.history.copy_(tokens)
        self._keep(drafts, live, live.active, denoise, len(steps))
        exits = exits.masked_fill(exits == len(steps), 0)
        self.record = _Record(sure.cpu(), given.cpu(), entropy.cpu(), norm.cpu(), exits.cpu())
        return drafts

    def _leaves(self, denoise: Denoiser, live: Live, there: Tensor) -> Tensor:
        """Which of the rows (R,) that are still there early exit would let go now."""
        patience = self.sampling.exit_patience
        return self._sure(denoise, there & (live.unchanged >= patience)) if patience else torch.zeros_like(there)

    def _hypotheses(self, drafts: Drafts, rows: Rows) -> List[Dict[str, Any]]:
        hypotheses = super()._hypotheses(drafts, rows)
        begins = rows.memory.begins(len(hypotheses)).tolist()
        tokens, record = drafts.history.cpu(), self.record
        for row, (hypothesis, begin, end) in enumerate(zip(hypotheses, begins, rows.lengths.tolist())):
            text = slice(begin, end)
            hypothesis["trace"] = Trace(
                tokens[:, row, text], [self._words(step["tokens"]) for step in hypothesis["history"]],
                record.confidence[:, row, text], record.given[row, text], record.entropy[:, row], record.norm[:, row],
                int(record.exits[row]) or None)
        return hypotheses

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
