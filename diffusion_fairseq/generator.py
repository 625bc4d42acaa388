"""Text from noise: encode once, keep one memory, denoise all candidates of all sources together."""

from functools import partial
from typing import Any, Dict, List, NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_fairseq.diffusion.noise import combine, gaussian_noise, sequence_keys
from diffusion_fairseq.diffusion.sampling import sample as reverse_process
from diffusion_fairseq.diffusion.solvers import SOLVERS, initial_state
from diffusion_fairseq.errors import UserError
from diffusion_fairseq.models.base import DiffusionModel, Encoded, Memory
from diffusion_fairseq.tasks.sampling_config import DEFAULT_STEPS, SamplingConfig, check_sampling
from diffusion_fairseq.text.embedding import clamp_to_tokens, nearest_tokens
from diffusion_fairseq.text.lengths import length_beam, lengths_to_mask

# Lengths are padded to a multiple of this. A matrix product or a softmax sums in another order for another shape, and
# the reverse process makes differences in the last bit grow; at whole multiples of a vector register it sums alike.
ALIGNMENT = 16
START = 0  # the draw of a noise stream that makes x_T; step i draws number i + 1


class Rows(NamedTuple):
    """The sequences that are generated together: R = B * N, row b * N + n is candidate n of source b.

    memory of the B sources; lengths (R,), mask (R, L) bool or None where all positions are generated;
    keys (R,) the noise streams.
    """

    memory: Memory
    lengths: Tensor
    mask: Optional[Tensor]
    keys: Tensor


class Denoiser:
    """The one callable a solver knows: self-conditioning and clamping wrapped round the model.

    `estimate` keeps the last estimate of x0 before clamping (R, L, D): it feeds self-conditioning, as in training,
    and the score of the final tokens.

    Args:
        forbidden: (V,) bool, tokens that are never generated.
        clamping_from: index of the first clamped step; None: never.
    """

    def __init__(self, model: DiffusionModel, rows: Rows, forbidden: Tensor, clamping_from: Optional[int]):
        self.model, self.rows, self.forbidden = model, rows, forbidden
        self.clamping_from = clamping_from
        self.calls = 0
        self.estimate: Optional[Tensor] = None

    def __call__(self, xt: Tensor, t: Tensor, _previous: Optional[Tensor]) -> Tensor:
        self.estimate = self.model.denoise(xt, t.to(xt.device), self.rows.memory, self.rows.mask, self.estimate)
        clamped = self.clamping_from is not None and self.calls >= self.clamping_from
        self.calls += 1
        return clamp_to_tokens(self.estimate, self.model.embedding.weight, self.forbidden) if clamped else self.estimate


def aligned(length: int) -> int:
    """The least multiple of ALIGNMENT that holds a length."""
    return -(-length // ALIGNMENT) * ALIGNMENT


class DiffusionGenerator:
    """Draws hypotheses from a diffusion model, with the interface of fairseq's SequenceGenerator.

    A sentence's noise depends on the seed, its source tokens and the candidate's number alone, so that its text
    is the same alone, in any batch and in any order.

    Args:
        model: the diffusion model.
        dictionary: the target dictionary.
        sampling: how to draw.
        nbest: hypotheses that will be printed per source.
        max_len_a, max_len_b: at most a * source length + b target tokens.
        retain_history: keep the rounded tokens of every step.
    Raises:
        UserError: options that this model cannot serve.
    """

    def __init__(self, model: DiffusionModel, dictionary, sampling: SamplingConfig, nbest: int = 1,
                 max_len_a: float = 0.0, max_len_b: int = 200, retain_history: bool = False):
        check_sampling(sampling)
        trained = model.schedule.num_timesteps
        steps = min(DEFAULT_STEPS, trained) if sampling.diffusion_steps is None else sampling.diffusion_steps
        if steps > trained:
            raise UserError(f"--diffusion-steps {steps} exceeds the {trained} timesteps the model was trained with")
        if sampling.clamping_from and not sampling.clamping:
            raise UserError("--clamping-from acts only with --clamping: give both")
        if sampling.clamping and sampling.clamping_from >= steps:
            raise UserError(f"--clamping-from {sampling.clamping_from} is not among the {steps} steps 0..{steps - 1}")
        if sampling.length_beam > 1 and model.length_model != "predicted":
            raise UserError("--length-beam needs a model trained with --length-model predicted; this one generates "
                            "padding: take --candidates instead")
        per_source = sampling.candidates * sampling.length_beam
        if nbest > per_source:
            raise UserError(f"--nbest {nbest} exceeds the hypotheses: --candidates times --length-beam is {per_source}")
        self.model, self.dictionary, self.sampling = model, dictionary, sampling
        self.max_len_a, self.max_len_b = max_len_a, max_len_b
        self.retain_history = retain_history
        self.per_source = per_source
        self.levels = [model.schedule.at(t) for t in model.schedule.grid(steps)]
        options = {"ddpm": {"variance": sampling.ddpm_variance}, "ddim": {"eta": sampling.ddim_eta}}
        self.step = partial(SOLVERS[sampling.solver], **options[sampling.solver])
        self.clamping_from = sampling.clamping_from if sampling.clamping else None
        self.symbols_to_strip_from_output = {dictionary.eos(), dictionary.pad(), dictionary.bos()}
        # Padding is a token only where the model generates it.
        self.forbidden = torch.zeros(len(dictionary), dtype=torch.bool)
        self.forbidden[dictionary.bos()] = True
        self.forbidden[dictionary.pad()] = model.length_model == "predicted"

    def generate(self, models, sample: Dict[str, Any], prefix_tokens: Optional[Tensor] = None,
                 constraints: Optional[Tensor] = None, **_) -> List[List[Dict[str, Any]]]:
        """Hypotheses for each source of a batch, best score first.

        Args:
            models: the model this generator was built with, alone in a list.
            sample: net_input.src_tokens (B, S).
        Returns:
            B lists of hypotheses: tokens (n,), ending in eos; positional_scores (n,), log-probabilities of the
            rounded tokens in nats; score, their mean; steps; history with --retain-iter-history.
        """
        if prefix_tokens is not None or constraints is not None:
            raise UserError("--prefix-size and --constraints are not served by diffusion generation: leave them out")
        model = self.model
        src_tokens = sample["net_input"]["src_tokens"]
        width = src_tokens.size(1)
        src_tokens = F.pad(src_tokens, (0, aligned(width) - width), value=model.pad)
        encoded = model.encode(src_tokens)
        rows = self._rows(encoded, src_tokens)
        forbidden = self.forbidden.to(src_tokens.device)
        denoise = Denoiser(model, rows, forbidden, self.clamping_from)
        history = []
        for state in self._reverse_process(denoise, rows):
            if self.retain_history:
                history.append(nearest_tokens(state.pred_x0, model.embedding.weight, forbidden))
        logits = model.round_logits(state.xt).float().masked_fill(forbidden, -torch.inf)
        tokens = logits.argmax(dim=-1)
        # The clamped x0 is an embedding and sure of itself; the estimate it was made from says how sure the model is.
        log_probs = model.round_logits(denoise.estimate).float().masked_fill(forbidden, -torch.inf).log_softmax(dim=-1)
        scores = log_probs.gather(-1, tokens[..., None]).squeeze(-1)
        hypotheses = self._hypotheses(tokens, scores, rows.lengths, history)
        grouped = [hypotheses[i : i + self.per_source] for i in range(0, len(hypotheses), self.per_source)]
        return [sorted(group, key=lambda hypothesis: -hypothesis["score"]) for group in grouped]

    def _reverse_process(self, denoise: Denoiser, rows: Rows):
        length, dim = aligned(int(rows.lengths.max())), self.model.embedding.embedding_dim

        def noise(counter: int) -> Tensor:
            return gaussian_noise(rows.keys, counter, length, dim)

        start = initial_state(noise(START), self.levels[0])
        return reverse_process(self.step, denoise, start, self.levels, lambda index: noise(START + 1 + index))

    def _rows(self, encoded: Encoded, src_tokens: Tensor) -> Rows:
        """What is generated for each source: every candidate at every length of the beam."""
        source_lengths = encoded.mask.sum(dim=1)
        limits = (self.max_len_a * source_lengths + self.max_len_b).long()
        limits = limits.clamp(1, self.model.max_target_positions)
        if self.model.length_model == "predicted":
            logits = self.model.length_logits(encoded)
            too_long = torch.arange(logits.size(1), device=logits.device) > limits[:, None]
            lengths = length_beam(logits.masked_fill(too_long, -torch.inf), self.sampling.length_beam)
            lengths = torch.minimum(lengths, limits[:, None])
        else:
            lengths = self.model.generation_lengths(limits)[:, None]
        candidates = torch.arange(self.sampling.candidates, device=src_tokens.device)
        keys = combine(sequence_keys(src_tokens, encoded.mask, self.sampling.seed)[:, None], candidates)
        lengths = lengths[:, None, :].expand(-1, len(candidates), -1).flatten()
        keys = keys[:, :, None].expand(-1, -1, self.sampling.length_beam).flatten()
        mask = lengths_to_mask(lengths, aligned(int(lengths.max())))
        return Rows(self.model.memory(encoded), lengths, None if mask.all() else mask, keys)

    def _hypotheses(self, tokens: Tensor, scores: Tensor, lengths: Tensor,
                    history: List[Tensor]) -> List[Dict[str, Any]]:
        """Cut each row at its end of sentence, on the host."""
        tokens, scores = tokens.cpu(), scores.cpu()
        history = [step.cpu() for step in history]
        hypotheses = []
        for row, length in enumerate(lengths.tolist()):
            kept = self._kept(tokens[row, :length])
            positional = scores[row, :kept].clone()
            hypotheses.append({
                "tokens": self._ended(tokens[row, :kept]), "positional_scores": positional,
                "score": float(positional.mean()), "attention": None, "alignment": None,
                "steps": len(self.levels) - 1,
                "history": [{"tokens": self._ended(step[row, : self._kept(step[row, :length])])} for step in history],
            })
        return hypotheses

    def _kept(self, tokens: Tensor) -> int:
        """How many positions belong to the text: up to the first end of sentence or padding, that one included."""
        ends = (tokens == self.dictionary.eos()) | (tokens == self.dictionary.pad())
        return int(ends.int().argmax()) + 1 if ends.any() else len(tokens)

    def _ended(self, tokens: Tensor) -> Tensor:
        """The tokens with an end of sentence in place of a padding that ends them."""
        return torch.where(tokens == self.dictionary.pad(), self.dictionary.eos(), tokens)
