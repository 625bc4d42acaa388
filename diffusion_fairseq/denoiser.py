"""What a solver calls: the model, with self-conditioning, clamping and given tokens wrapped round it."""

from functools import partial
from typing import List, NamedTuple, Optional

import torch
from torch import Tensor

from diffusion_fairseq.diffusion.noise import gaussian_noise
from diffusion_fairseq.diffusion.process import q_sample
from diffusion_fairseq.guidance import ConditionGuidance
from diffusion_fairseq.models.base import DiffusionModel
from diffusion_fairseq.models.condition import Condition
from diffusion_fairseq.modules.packing import ALIGNMENT, Packing
from diffusion_fairseq.text.lengths import lengths_to_mask

START = 0  # the draw of a noise stream that makes x_T; step i draws number i + 1


def aligned(length: int) -> int:
    """The width at which a row is computed: a multiple of ALIGNMENT, and coarser for long rows so that rows of like
    lengths are computed together. A function of the row alone: a matrix product or a softmax sums in another order for
    another shape, and the reverse process makes differences in the last bit grow."""
    step = max(ALIGNMENT, 1 << max(0, length.bit_length() - 3))
    return -(-length // step) * step


class Rows(NamedTuple):
    """The sequences that are generated together: R = B * N, row b * N + n is candidate n of source b.

    memory of the B sources; lengths (R,); keys (R,) the noise streams; packing of the positions that are generated.
    """

    memory: Condition
    lengths: Tensor
    keys: Tensor
    packing: Packing

    @property
    def width(self) -> int:
        """Positions of each sequence, filler included."""
        return self.packing.shape[1]

    @property
    def generated(self) -> Tensor:
        """True (R, L) at the positions that are generated: neither padding nor given."""
        mask = lengths_to_mask(self.lengths, self.width)
        given = self.memory.given(*mask.shape)
        return mask if given is None else mask & ~given

    @classmethod
    def of(cls, memory: Condition, lengths: Tensor, keys: Tensor, active: Optional[Tensor] = None) -> "Rows":
        """Rows as wide as the longest of them needs; nothing is computed for those that are not active (R,)."""
        mask = lengths_to_mask(lengths, aligned(int(lengths.max())))
        return cls(memory, lengths, keys, Packing.of(mask if active is None else mask & active[:, None]))


class Prediction:
    """What a model that predicts tokens told at its last evaluation.

    hidden: what the layers made of the packed positions (n, model_dim); None before the first evaluation.
    likeliest: the likeliest token of each, in parts, where `score` was told the scores that the estimate came of.

    Args:
        forbidden: (V,) bool, tokens that are never generated.
    """

    def __init__(self, forbidden: Tensor):
        self.forbidden = forbidden
        self.hidden: Optional[Tensor] = None
        self.likeliest: List[Tensor] = []

    def begin(self, hidden: Tensor) -> None:
        """Another evaluation."""
        self.hidden, self.likeliest = hidden, []

    def score(self, scores: Tensor) -> None:
        """The scores (m, V) of the next m positions."""
        self.likeliest.append(scores.masked_fill(self.forbidden, -torch.inf).argmax(dim=-1))


class Denoiser:
    """The one callable a solver knows: self-conditioning and clamping wrapped round the model.

    `estimate` keeps the last estimate of x0 before clamping (R, L, D): it feeds self-conditioning, as in training,
    and the score of the final tokens.

    Args:
        forbidden: (V,) bool, tokens that are never generated.
        clamping_from: the time at and below which estimates are clamped; None: never.
        guidance_scale: of classifier-free guidance; 1: none.
        temperature: of the token probabilities of a model that predicts tokens.
        watched: whether `tokens` is asked for at every step; such a model notes them then as it estimates x0,
            unless estimates are clamped.
    """

    def __init__(self, model: DiffusionModel, rows: Rows, forbidden: Tensor, clamping_from: Optional[Tensor],
                 guidance_scale: float = 1.0, temperature: float = 1.0, watched: bool = False):
        self.model, self.rows, self.forbidden = model, rows, forbidden
        self.clamping_from = clamping_from
        # Whether tokens are told by the model's prediction: of what classifier-free guidance makes of two only the
        # estimate is known.
        self.predicts = model.predicts_tokens and guidance_scale == 1
        denoise, self._prediction = model.denoise, Prediction(forbidden)
        if model.predicts_tokens:
            # Normalised once for all steps. No method of its own is handed over: what holds itself outlives a batch.
            denoise = partial(denoise, temperature=temperature, watch=self._prediction.begin,
                              vectors=model.vectors.float())
        if self.predicts and watched and clamping_from is None:  # the tokens of a clamped estimate are known
            denoise = partial(denoise, scored=self._prediction.score)
        self.guidance = None if guidance_scale == 1 else ConditionGuidance(model, guidance_scale, denoise)
        self.denoise = self.guidance or denoise
        self.estimate: Optional[Tensor] = None
        self.clamped: Optional[Tensor] = None
        self.clamped_tokens: Optional[Tensor] = None
        self.nearest = model.nearest_search(forbidden)
        self.likeliest = model.prediction_search(forbidden) if self.predicts else model.token_search(forbidden)
        # The noise with which given tokens enter at the level of the others: one draw for all steps.
        self.given_noise = self.noise(START) if model.noises_given else None

    def __call__(self, xt: Tensor, t: Tensor, _previous: Optional[Tensor]) -> Tensor:
        # Filled, not copied: a copy from the host would wait for the device.
        time = torch.full((1,), t.item(), dtype=t.dtype, device=xt.device)
        memory = self.rows.memory
        if self.given_noise is not None:
            given = memory.values(*xt.shape[:2])
            xt = memory.impose(xt, q_sample(given, self.model.schedule.at(time).cut(xt.size(1)), self.given_noise))
        self.estimate = self.denoise(xt, time, memory, self.rows.packing, self.estimate)
        if self.clamping_from is None or t > self.clamping_from:
            return self.estimate
        packing = self.rows.packing
        tokens = self.nearest(packing.pack(self.estimate))
        self.clamped = memory.impose(packing.unpack(self.nearest.embedding[tokens]))
        self.clamped_tokens = packing.unpack(tokens)
        return self.clamped

    def tokens(self, x0: Tensor) -> Tensor:
        """The tokens (R, L) that the last estimate of x0 rounds to, 0 where none is generated; known already where it
        was clamped. Of a model that predicts tokens its likeliest ones: while it is unsure, their mean embedding is
        nearest to others."""
        packing, tokens = self.rows.packing, self.clamped_tokens
        if x0 is not self.clamped and self._prediction.likeliest:
            tokens = packing.unpack(torch.cat(self._prediction.likeliest))
        elif x0 is not self.clamped:
            tokens = packing.unpack(self.likeliest(self.hidden if self.predicts else packing.pack(x0)))
        return self.rows.memory.impose_tokens(tokens)

    @property
    def hidden(self) -> Optional[Tensor]:
        """What the layers made of the packed positions (n, model_dim) at the last evaluation, in a model that predicts
        tokens; else None."""
        return self._prediction.hidden

    def entropy(self, packing: Packing) -> Tensor:
        """The entropy (n,) in nats of p(token | x_t, t) at packed positions, at the last evaluation: of what the model
        predicts with its condition, before temperature, or of what its estimate of x0 rounds to before clamping."""
        hidden = self.estimate if self.hidden is None else self.rows.packing.unpack(self.hidden)
        return self.model.entropy(packing.pack(hidden))

    def log_probabilities(self, chosen: Tensor, tokens: Tensor) -> Tensor:
        """How sure the model is of tokens (n, L) of the chosen rows, as `entropy` is: their log p (n, L) in nats, 0 at
        padding and at given tokens.

        Args:
            chosen: (R,) bool, n of them.
        """
        mask = self.rows.generated[chosen]
        packing = Packing.of(mask)
        x = self.rows.packing.unpack(self.hidden) if self.predicts else self.estimate
        log = self.model.log_probabilities(packing.pack(x[chosen]), packing.pack(tokens), self.forbidden, self.predicts)
        return packing.unpack(log)

    def mean_entropy(self, chosen: Tensor) -> Tensor:
        """The mean of that entropy (n,) over the generated positions of each chosen row; chosen (R,) bool."""
        mask = self.rows.generated & chosen[:, None]
        packing = Packing.of(mask)
        # In float64, so that the width of the batch changes no sum.
        sums = packing.unpack(self.entropy(packing))[chosen].double().sum(dim=1)
        return sums / mask[chosen].sum(dim=1).clamp(min=1)

    def select(self, sources: Tensor, index: Tensor, active: Tensor) -> None:
        """Go on with some sources (B',) and the rows (B' * N',) of theirs that stay, of which some are active."""
        before = self.rows
        self.rows = Rows.of(before.memory.select(sources), before.lengths[index], before.keys[index], active)
        self.clamped = None
        self.estimate = self.estimate[index, : self.rows.width]
        if self.given_noise is not None:
            self.given_noise = self.given_noise[index, : self.rows.width]
        if self.guidance is not None:
            self.guidance.select(index, self.rows.width)

    def compute(self, active: Tensor) -> None:
        """Go on with the active rows (R,); the others keep their place and cost nothing but attention."""
        self.rows = Rows.of(self.rows.memory, self.rows.lengths, self.rows.keys, active)
        self.clamped = None

    def noise(self, counter: int) -> Tensor:
        """Draw number `counter` of every row's noise stream (R, L, D)."""
        return gaussian_noise(self.rows.keys, counter, self.rows.width, self.model.embedding.embedding_dim)
