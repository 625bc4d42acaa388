"""DDLM: the network predicts tokens, and their mean embedding is the estimate of x_0: score interpolation (CDCD:
Dieleman et al., 2022; "Democratized Diffusion Language Model", sections 2 and 3)."""

from typing import Callable, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.diffusion.process import q_sample
from diffusion_fairseq.diffusion.schedules import SigmaEqualsT
from diffusion_fairseq.models.base import VLB, in_chunks
from diffusion_fairseq.models.condition import Prompt
from diffusion_fairseq.models.config import DDLMConfig
from diffusion_fairseq.models.ddlm_encoder import DDLMEncoder, sigma_equals_t
from diffusion_fairseq.models.presets import DDLM
from diffusion_fairseq.models.prompts import PromptModel
from diffusion_fairseq.models.registration import register
from diffusion_fairseq.models.training_pass import Objective, TrainingPass
from diffusion_fairseq.modules.packing import Packing
from diffusion_fairseq.text.embedding import TokenSearch


@register("ddlm", DDLMConfig, DDLM)
class DDLMModel(DDLMEncoder, PromptModel):
    """A language model over embeddings of length sqrt(d), noised by sigma = t; given tokens are never noised.

    Args:
        cfg: options.
        num_tokens: size of the dictionary.
        pad, mask: indices of padding and of the mask token.
    """

    predicts_tokens = True

    def __init__(self, cfg: DDLMConfig, num_tokens: int, pad: int, mask: int):
        super().__init__(cfg, num_tokens, pad)
        self.mask = self.empty = mask
        # Tokens are predicted, not rounded to: what the generator scores with needs no bias.
        del self.rounding_bias
        self.register_buffer("rounding_bias", torch.zeros(num_tokens), persistent=False)
        self.add_layers(cfg, cfg.max_target_positions)
        self.head = nn.Linear(cfg.model_dim, num_tokens)
        self.init_tables()

    def process(self, cfg: DDLMConfig) -> Tuple[SigmaEqualsT, str]:
        return sigma_equals_t(cfg), "x0"

    def network(self, xt: Tensor, t: Tensor, memory: Prompt, packing: Packing, previous: Optional[Tensor]) -> Tensor:
        """What the layers make (n, model_dim) of the packed positions of xt (R, L, D) at times t (R,) or ()."""
        given = memory.given(*xt.shape[:2])
        return self.hidden(memory.impose(self.scaled(xt, t)), t, packing, previous, given)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (n, V) float32 of the tokens at positions (n, model_dim)."""
        return self.head(hidden).float()

    def prediction_search(self, forbidden: Tensor) -> TokenSearch:
        """A search for the token of largest p(token | x_t, t), from what `logits` takes, the forbidden ones (V,) left
        out."""
        return TokenSearch(self.head.weight, self.head.bias, forbidden)

    def interpolate(self, hidden: Tensor, temperature: float = 1.0, vectors: Optional[Tensor] = None,
                    scored: Callable[[Tensor], None] = lambda scores: None) -> Tensor:
        """The mean embedding (n, D) float32 under p(x_0 | x_t, t) (CDCD, eq. 4), the vocabulary's scores held for some
        positions at a time.

        Args:
            vectors: (V, D) float32, `self.vectors` where the caller has them.
            scored: is told these scores (m, V) before temperature, one part of the positions after the other.
        """
        vectors = self.vectors.float() if vectors is None else vectors

        def mean(part: Tensor) -> Tensor:
            scores = self.logits(part)
            scored(scores)
            return (scores if temperature == 1 else scores / temperature).softmax(dim=-1) @ vectors

        return in_chunks(mean, len(vectors), hidden)

    def denoise(self, xt: Tensor, t: Tensor, memory: Prompt, packing: Optional[Packing] = None,
                previous: Optional[Tensor] = None, temperature: float = 1.0,
                watch: Callable[[Tensor], None] = lambda hidden: None, vectors: Optional[Tensor] = None,
                scored: Callable[[Tensor], None] = lambda scores: None) -> Tensor:
        """As the other models', at a temperature of the tokens' probabilities.

        Args:
            watch: is told what the layers made (n, model_dim), which `entropy` takes.
            vectors, scored: as in `interpolate`.
        """
        packing = Packing(tuple(xt.shape[:2])) if packing is None else packing
        hidden = self.network(xt, t, memory, packing, previous)
        watch(hidden)
        return memory.impose(packing.unpack(self.interpolate(hidden, temperature, vectors, scored)))

    def forward(
        self, src_tokens: Tensor, target: Tensor, t: Tensor, start_noise: Optional[Tensor] = None,
        noise: Optional[Tensor] = None, draws: Optional[Draws] = None, objective: Objective = VLB,
    ) -> TrainingPass:
        """One training pass at times t (B,): as the other models', without noise of x_0 and rounding; anchor_nll is
        the cross-entropy of the predicted tokens."""
        draws = draws or Draws()
        example = self.example(src_tokens, target, len(t), objective, draws)
        memory, packing = example.memory, example.packing
        embedded = self.embed(example.target)
        if noise is None:
            noise = draws.normal(embedded)
        xt = q_sample(objective.through("input", embedded), self.schedule.at(t), noise)
        previous = self.previous(xt, t, example, draws)
        hidden = packing.unpack(self.network(xt, t, memory, packing, previous))
        scored = Packing.of(example.modelled)

        def nll(part: Tensor, tokens: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(part), tokens, reduction="none",
                                   label_smoothing=objective.label_smoothing)

        losses = in_chunks(nll, self.embedding.num_embeddings, scored.pack(hidden), scored.pack(example.target))
        pred_x0 = None
        if not self.training:
            pred_x0 = memory.impose(packing.unpack(self.interpolate(packing.pack(hidden))))
        return TrainingPass(
            target=example.target, counts=example.counts, modelled=example.modelled, embedded=embedded, x0=embedded,
            prediction=None, aim=None, pred_x0=pred_x0, rounding_nll=None, anchor_nll=scored.unpack(losses),
            length_logits=None, lengths=example.lengths,
        )

    def transformer_layers(self) -> Iterator[nn.Module]:
        yield from self.layers
