"""What every diffusion model shares: embeddings, schedule, parameterisation, and the training pass."""

import math
from typing import Callable, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.diffusion.process import noised_embedding, q_sample, x0_from_eps
from diffusion_fairseq.errors import UserError, one_of
from diffusion_fairseq.models.condition import Condition, Memory
from diffusion_fairseq.models.config import PARAMETERIZATIONS, LatentConfig
from diffusion_fairseq.models.noise import Schedule, model_schedule
from diffusion_fairseq.models.persistence import Persistent
from diffusion_fairseq.models.training_pass import Example, Objective, TrainingPass
from diffusion_fairseq.modules.half_precision import bounded
from diffusion_fairseq.modules.packing import ALIGNMENT, Packing
from diffusion_fairseq.modules.self_conditioning import first_estimates
from diffusion_fairseq.text.embedding import TokenSearch

PADDING_MODELLED = ("fixed", "longest")  # values of --length-model
SELF_CONDITIONING_RATE = 0.5  # Chen et al. (2023), section 3.2
VLB = Objective()
LOGITS_AT_ONCE = 1 << 24  # scores over the vocabulary that are held at one time: 64 MB


def _latents_at_once(num_tokens: int, alignment: int = ALIGNMENT) -> int:
    return max(1, LOGITS_AT_ONCE // num_tokens // alignment) * alignment


def in_chunks(function: Callable[..., Tensor], num_scores: int, *tensors: Tensor, alignment: int = ALIGNMENT) -> Tensor:
    """function(*parts) over parts of the rows of tensors (n, ...), so that at most LOGITS_AT_ONCE scores over the
    vocabulary, or those of `alignment` rows, are held at a time; with gradient, for which they are computed again. It
    draws nothing.

    Args:
        num_scores: of a row.
        alignment: parts have a multiple of so many rows.
    """
    at_once = _latents_at_once(num_scores, alignment)
    if len(tensors[0]) <= at_once:
        return function(*tensors)
    parts = zip(*(tensor.split(at_once) for tensor in tensors))
    if not torch.is_grad_enabled():
        return torch.cat([function(*part) for part in parts])
    return torch.cat([checkpoint(function, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


class DiffusionModel(Persistent):
    """A denoiser of embeddings with its noise schedule.

    Subclasses give `encode`, `memory`, `network`, `transformer_layers` and, for predicted lengths, `length_logits`;
    LENGTH_MODELS are those of --length-model that they serve.

    Args:
        cfg: the model's options.
        num_tokens: size of the target dictionary.
        pad: index of padding.
        longest_sequence: positions that are denoised together, at most; default: those of a target.
    Raises:
        UserError: an option that gives no model.
    """

    LENGTH_MODELS: Tuple[str, ...] = ("fixed", "longest", "predicted")
    # Whether sources are prompts: the sequences themselves, with a mask token wherever one is generated.
    prompts = False
    # Index of that token.
    mask: Optional[int] = None
    # Whether equal sources are to get different texts, by their number in the data.
    numbered = False
    # Whether given tokens are seen at the noise level of those that are generated.
    noises_given = False
    # Whether the network predicts tokens, whose mean embedding is the estimate of x0.
    predicts_tokens = False
    # Whether given tokens are seen with the noise of x_0 in training.
    jitters_given = False
    # The token of which the empty condition is made, where the model has a condition to drop.
    empty: Optional[int] = None

    def __init__(self, cfg: LatentConfig, num_tokens: int, pad: int, longest_sequence: Optional[int] = None):
        super().__init__(num_tokens)
        self.longest_sequence = longest_sequence or cfg.max_target_positions
        self.schedule, self.parameterization = self.process(cfg)
        if cfg.latent_dim < 2 or cfg.latent_dim % 2:
            raise UserError(f"--latent-dim must be even and positive, got {cfg.latent_dim}")
        self.length_model = one_of("--length-model", cfg.length_model, self.LENGTH_MODELS)
        self.self_conditioning = cfg.self_conditioning
        self.length_margin = cfg.length_margin
        if cfg.length_margin < 0:
            raise UserError(f"--length-margin must be at least 0, got {cfg.length_margin}")
        if not 0 <= cfg.condition_dropout < 1:
            raise UserError(f"--condition-dropout must be at least 0 and less than 1, got {cfg.condition_dropout}")
        self.condition_dropout = cfg.condition_dropout
        self.max_source_positions = cfg.max_source_positions
        self.max_target_positions = cfg.max_target_positions
        self.pad = pad
        self.embedding = nn.Embedding(num_tokens, cfg.latent_dim)
        self.rounding_bias = nn.Parameter(torch.zeros(num_tokens))

    def process(self, cfg: LatentConfig) -> Tuple[Schedule, str]:
        """The noise schedule, and what the network predicts."""
        schedule = model_schedule(cfg, self.longest_sequence)
        return schedule, one_of("--parameterization", cfg.parameterization, PARAMETERIZATIONS)

    @property
    def vectors(self) -> Tensor:
        """The embeddings (V, D) that are noised."""
        return self.embedding.weight

    def embed(self, tokens: Tensor) -> Tensor:
        """The embeddings (..., D) float32 of tokens (...)."""
        return F.embedding(tokens, self.vectors).float()

    def encode(self, src_tokens: Tensor) -> Condition:
        """Encode a source (B, S); once per sentence."""
        raise NotImplementedError

    def memory(self, encoded: Condition) -> Condition:
        """Each layer's cross-attention keys and values; once per sentence."""
        raise NotImplementedError

    def unconditional(self, memory: Condition) -> Condition:
        """The memory of the empty condition, for the rows of a memory."""
        raise NotImplementedError

    def without_condition(self, src_tokens: Tensor) -> Tensor:
        """The empty condition in place of each source (B, S): as many empty tokens."""
        return src_tokens.masked_fill(src_tokens != self.pad, self.empty)

    def drop_conditions(self, src_tokens: Tensor, draws: Draws) -> Tensor:
        """In training put the empty condition in place of a source (B, S) with the probability of --condition-dropout
        (Ho & Salimans, 2022, algorithm 1)."""
        if not self.training or not self.condition_dropout:
            return src_tokens
        dropped = draws.uniform(src_tokens) < self.condition_dropout
        return torch.where(dropped[:, None], self.without_condition(src_tokens), src_tokens)

    def network(self, xt: Tensor, t: Tensor, memory: Condition, packing: Packing, previous: Optional[Tensor]) -> Tensor:
        """The network's output (N * B, L, D), in its own dtype."""
        raise NotImplementedError

    def length_logits(self, encoded: Condition) -> Tensor:
        """Scores (B, max_target_positions + 1) of the target's length, under --length-model predicted. Lengths are few
        and soon learned by heart: they must not shape the encoder."""
        raise NotImplementedError

    def prepare_for_inference_(self, cfg) -> None:
        """What fairseq's commands call before they generate: under --bf16 the network computes in it."""
        super().prepare_for_inference_(cfg)
        if cfg.common.bf16:
            self.network_to(torch.bfloat16)

    def network_to(self, dtype: torch.dtype) -> None:
        """Cast all but the target's embeddings and their bias: they are the space in which x_t and x_0 lie."""
        for name, module in self.named_children():
            if name not in ("embedding", "timesteps"):
                module.to(dtype)

    def transformer_layers(self) -> Iterator[nn.Module]:
        """The layers in which nearly all the time is spent."""
        raise NotImplementedError

    def max_positions(self) -> Tuple[int, int]:
        """Longest source and target, in tokens."""
        return self.max_source_positions, self.max_target_positions

    def to_x0(self, output: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The estimate of x0 that an output of the network implies."""
        if self.parameterization == "x0":
            return output
        return x0_from_eps(xt, output, self.schedule.at(t).cut(xt.size(1)))

    def denoise(self, xt: Tensor, t: Tensor, memory: Condition, packing: Optional[Packing] = None,
                previous: Optional[Tensor] = None) -> Tensor:
        """Estimate x0, in float32, whatever the parameterisation and the dtype of the weights.

        Args:
            xt: (N * B, L, D); row b * N + n belongs to source b.
            t: () or (N * B,) integer times.
            memory: of B sources.
            packing: of the N * B rows; None: every position is generated.
            previous: (N * B, L, D), the previous estimate; None at the first step.
        """
        packing = Packing(tuple(xt.shape[:2])) if packing is None else packing
        x0 = self.to_x0(self.network(xt, t, memory, packing, previous).float(), xt, t)
        # The embeddings of what is seen noised would tell it, as the next previous estimate, what training never told.
        return x0 if self.noises_given else memory.impose(x0)

    def round_logits(self, x: Tensor) -> Tensor:
        """Scores (..., V) of the tokens at latents (..., D): the embedding, tied, and a bias."""
        return F.linear(bounded(x, self.vectors.dtype), self.vectors, self.rounding_bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (n, V) float32 of p(token | x_t, t): here of what the estimates of x0 (n, D) round to."""
        return self.round_logits(hidden).float()

    def entropy(self, hidden: Tensor) -> Tensor:
        """The entropy (n,) in nats of p(token | x_t, t) over the whole vocabulary, from what `logits` takes."""
        def entropy(part: Tensor) -> Tensor:
            log = self.logits(part).log_softmax(dim=-1)
            return -(log.exp() * log).sum(dim=-1)

        return in_chunks(entropy, self.embedding.num_embeddings, hidden)

    def token_nll(self, x: Tensor, tokens: Tensor, label_smoothing: float = 0.0, fixed: bool = False) -> Tensor:
        """-log p(token | x) (n,) in nats of tokens (n,) at latents (n, D), with gradient; at most LOGITS_AT_ONCE scores
        over the vocabulary are held at a time.

        Args:
            label_smoothing: the share of the probability that all tokens are to have alike.
            fixed: whether the embeddings that are scored against get no gradient.
        """
        def nll(x: Tensor, tokens: Tensor) -> Tensor:
            weight = self.vectors.detach() if fixed else self.vectors
            scores = F.linear(bounded(x, weight.dtype), weight, self.rounding_bias).float()
            return F.cross_entropy(scores, tokens, reduction="none", label_smoothing=label_smoothing)

        return in_chunks(nll, self.embedding.num_embeddings, x, tokens)

    def log_probabilities(self, x: Tensor, tokens: Tensor, forbidden: Tensor, predicted: bool = False) -> Tensor:
        """log p(token | x) (n,) in nats of tokens (n,) at latents (n, D), the forbidden ones (V,) left out; predicted:
        x is what `logits` takes, and the probability what the model predicts, not what its estimate rounds to."""
        at_once, score = _latents_at_once(len(forbidden)), self.logits if predicted else self.round_logits
        scores = (score(part).float().masked_fill(forbidden, -torch.inf) for part in x.split(at_once))
        return torch.cat([part.log_softmax(dim=-1).gather(1, chosen[:, None]).squeeze(1)
                          for part, chosen in zip(scores, tokens.split(at_once))])

    def token_search(self, forbidden: Tensor) -> TokenSearch:
        """A search for the likeliest token at a latent, the forbidden ones (V,) left out."""
        return TokenSearch(self.vectors, self.rounding_bias, forbidden)

    def nearest_search(self, forbidden: Tensor) -> TokenSearch:
        """A search for the token with the nearest embedding, the forbidden ones (V,) left out."""
        return TokenSearch.nearest(self.vectors, forbidden)

    def modelled_target(self, target: Tensor) -> Tensor:
        """Pad or cut a sequence (B, L) to the positions that are modelled."""
        length = target.size(1)
        if self.length_model == "fixed":
            length = self.longest_sequence
        elif self.length_model == "longest":
            length = min(length + self.length_margin, self.longest_sequence)
        if self.training:
            self.longest_target.clamp_(min=length)
        return F.pad(target, (0, length - target.size(1)), value=self.pad)

    def example(self, src_tokens: Tensor, target: Tensor, count: int, objective: Objective,
                draws: Draws) -> Example:
        """What of a batch is learned from, in `count` rows: as `forward` takes it."""
        copies, lengths = count // len(src_tokens), (target != self.pad).sum(dim=1)
        encoded = self.encode(self.drop_conditions(src_tokens, draws))
        memory = self.memory(encoded)
        target = self.modelled_target(self.sequence(encoded, target)).repeat_interleave(copies, dim=0)
        if objective.given and isinstance(memory, Memory):
            raise UserError("--given-in-loss has no use with this model, whose source is no part of the sequence that "
                            "is denoised: leave it out")
        given = memory.given(*target.shape)
        generated = torch.ones_like(target, dtype=torch.bool) if given is None or objective.given else ~given
        counts = (target != self.pad) & generated
        modelled = generated if self.length_model in PADDING_MODELLED else counts
        if self.training:
            self.meet_tokens(target, modelled)
        packing = Packing.of(modelled if given is None else modelled | given)
        return Example(target, counts, modelled, packing, encoded, memory, copies, lengths)

    def forward(
        self, src_tokens: Tensor, target: Tensor, t: Tensor, start_noise: Optional[Tensor] = None,
        noise: Optional[Tensor] = None, draws: Optional[Draws] = None, objective: Objective = VLB,
    ) -> TrainingPass:
        """One training pass at the timesteps t (GENIE, eq. 8, 9 and 12).

        Args:
            src_tokens, target: (B, S) and (B, L') tokens.
            t: (B * k,) int64: k noised copies of each target share the encoding of its source.
            start_noise, noise: (B * k, L, D), the noise of x0 and of xt; drawn where not given.
            draws: what is drawn from; default: torch's own random numbers.
            objective: what is wanted, and which gradients.
        """
        draws = draws or Draws()
        example = self.example(src_tokens, target, len(t), objective, draws)
        target, memory, packing = example.target, example.memory, example.packing
        embedded = self.embed(target)
        first, level = (self.schedule.at(times).cut(target.size(1)) for times in (torch.zeros_like(t), t))
        x0 = noised_embedding(embedded, first, draws.normal(embedded) if start_noise is None else start_noise)
        noise = draws.normal(embedded) if noise is None else noise
        if self.training and self.jitters_given:
            memory = memory._replace(embedded=x0)
        xt = q_sample(objective.through("input", x0), level, noise)
        previous = self.previous(xt, t, example._replace(memory=memory), draws)
        output = self.network(xt, t, memory, packing, previous).float()
        pred_x0 = self.to_x0(output, xt, t)

        def nll(name: str, x: Tensor, copies: int = 1) -> Tensor:
            """Of the first copy of each target, which stands for all."""
            scored = Packing.of(example.modelled[::copies])
            found = self.token_nll(scored.pack(x[::copies]), scored.pack(target[::copies]), objective.label_smoothing,
                                   fixed=f"{name}-softmax" in objective.detached)
            return scored.unpack(found).repeat_interleave(copies, dim=0)

        # The rounding of x0 knows nothing of t, and hardly differs between two draws of its noise.
        rounded = objective.through("rounding-x0", x0)
        return TrainingPass(
            target=target, counts=example.counts, modelled=example.modelled, embedded=embedded, x0=x0,
            prediction=output, aim=x0 if self.parameterization == "x0" else noise, pred_x0=pred_x0,
            rounding_nll=nll("rounding", rounded, example.copies) if objective.rounding else None,
            anchor_nll=nll("anchor", pred_x0) if objective.anchor else None,
            length_logits=self.length_logits(example.encoded) if self.length_model == "predicted" else None,
            lengths=example.lengths,
        )

    def previous(self, xt: Tensor, t: Tensor, example: Example, draws: Draws) -> Optional[Tensor]:
        """What the network is fed as its previous estimate (B, L, D) in training; None without self-conditioning."""
        if not self.self_conditioning:
            return None

        def estimate(rows: Tensor) -> Tensor:
            memory = example.memory.select(rows // example.copies)
            if self.training and self.jitters_given:  # a row each, not one a source
                memory = memory._replace(embedded=example.memory.embedded[rows])
            return self.denoise(xt[rows], t[rows], memory, example.packing.select(rows))

        return first_estimates(estimate, xt.detach(), SELF_CONDITIONING_RATE, draws)

    def sequence(self, encoded: Condition, target: Tensor) -> Tensor:
        """What is denoised (B, L) for a target (B, L'): by default itself."""
        return target

    def generation_lengths(self, limits: Tensor, encoded: Condition) -> Tensor:
        """How many positions to generate where padding is modelled, at most `limits` (B,)."""
        trained = self.longest_sequence
        if self.length_model == "longest":
            trained = max(1, math.ceil(self.longest_target.item()))
        return limits.clamp(max=trained)

    @classmethod
    def check_task(cls, task) -> None:
        """Refuse a task whose data are of another kind.

        Raises:
            UserError: naming the task to use.
        """
        if getattr(task, "prompts", None) != cls.prompts:
            raise UserError(
                f"{cls.__name__} is a diffusion model that {'fills prompts' if cls.prompts else 'reads a source'} and "
                f"cannot run under the task of class {type(task).__name__}: pass --task "
                f"{'diffusion_lm' if cls.prompts else 'seq2seq_diffusion'}"
            )
