"""How likely a model finds a text: an upper bound on its negative log-likelihood, by Monte Carlo."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffusion_fairseq.diffusion import likelihood
from diffusion_fairseq.diffusion.noise import Draws
from diffusion_fairseq.diffusion.process import q_sample
from diffusion_fairseq.diffusion.schedules import NoiseLevel, SigmaEqualsT
from diffusion_fairseq.models.base import VLB, DiffusionModel, in_chunks
from diffusion_fairseq.models.training_pass import Example

# Its multiples fill [0, 1) evenly.
GOLDEN = (math.sqrt(5) - 1) / 2


class Bound(NamedTuple):
    """Terms in nats of each example (B,), summed over its generated positions, -log p of its length where the model
    predicts one (else 0: the length is given, or padding is generated and paid for like words), and the count (B,) of
    its tokens that are no padding."""

    reconstruction: Tensor
    diffusion: Tensor
    prior: Tensor
    length: Tensor
    count: Tensor

    @property
    def total(self) -> Tensor:
        """The bound on -log p of each example (B,), in nats."""
        return self.reconstruction + self.diffusion + self.prior + self.length


def even_shares(numbers: Tensor, draws: int) -> Tensor:
    """u (draws, B) in [0, 1), float64, for the examples of these numbers (B,): each has one in every part of 1 / draws,
    and those of successive numbers fill the parts evenly (Kronecker's sequence of the golden ratio)."""
    first = (numbers.double() * GOLDEN) % 1
    return (torch.arange(draws, device=numbers.device)[:, None] + first) / draws


def nll_bound(model: DiffusionModel, src_tokens: Tensor, target: Tensor, u: Tensor,
              draws: Draws) -> Bound:
    """One draw of the bound for each example.

    The process starts from the embeddings themselves, whatever noise training adds to them first: any denoiser gives a
    bound. Given positions are conditions and do not count. Under --length-model longest the padding is that of the
    batch, and so is what it costs.

    Args:
        src_tokens, target: (B, S) and (B, L) tokens.
        u: (B,) in [0, 1), which times are drawn: evenly spread ones over all draws make the mean sure.
        draws: of the noise.
    """
    example = model.example(src_tokens, target, len(src_tokens), VLB, draws)
    x0, weight = model.embed(example.target), example.modelled.double()

    def noised(level: NoiseLevel) -> Tensor:
        return q_sample(x0, level.cut(x0.size(1)), draws.normal(x0))

    first, last = _ends(model, x0)
    search = model.nearest_search(torch.zeros(model.embedding.num_embeddings, dtype=torch.bool, device=x0.device))

    def scores(y: Tensor) -> Tensor:
        return y @ search.embedding.t() + search.bias

    def cleanest(xt: Tensor, tokens: Tensor) -> Tensor:
        return likelihood.reconstruction(scores, xt, tokens, first.cut(x0.size(1)))

    # Whole examples at a time, whose positions take so many scores each.
    reconstruction = in_chunks(cleanest, len(search.bias) * x0.size(1), noised(first), example.target, alignment=1)
    diffusion = _diffusion(model, example, x0, u.to(x0.device), noised)
    terms = (reconstruction, diffusion, likelihood.prior(x0, last.cut(x0.size(1))))
    length = x0.new_zeros(len(x0), dtype=torch.float64)
    if model.length_model == "predicted":
        length = F.cross_entropy(model.length_logits(example.encoded).double(), example.lengths, reduction="none")
    return Bound(*((term * weight).sum(dim=1) for term in terms), length, example.counts.double().sum(dim=1))


def _ends(model: DiffusionModel, x0: Tensor):
    """The cleanest and the noisiest level that generation knows."""
    schedule = model.schedule
    if isinstance(schedule, SigmaEqualsT):
        times = x0.new_tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    else:
        times = torch.tensor([0, schedule.num_timesteps - 1], device=x0.device)
    return schedule.at(times[0]), schedule.at(times[1])


def _diffusion(model: DiffusionModel, example: Example, x0: Tensor, u: Tensor, noised) -> Tensor:
    """The diffusion term (B, L) at one time for each example, weighted so that its mean is the sum over the levels, or
    the integral over t."""
    schedule = model.schedule
    if isinstance(schedule, SigmaEqualsT):
        # log t uniform: the integrand falls as fast as 1 / t^3 times a squared error that rises.
        span = math.log(schedule.t_max / schedule.t_min)
        t = schedule.t_min * (u.double() * span).exp()
        pred_x0 = model.denoise(noised(schedule.at(t)), t, example.memory, example.packing)
        return likelihood.continuous_diffusion(x0, pred_x0, t) * (t * span)[:, None]
    steps = schedule.num_timesteps - 1
    if not steps:  # the cleanest level is the noisiest
        return x0.new_zeros(x0.shape[:2], dtype=torch.float64)
    t = 1 + (u * steps).long()
    pred_x0 = model.denoise(noised(schedule.at(t)), t, example.memory, example.packing)
    before, level = (schedule.at(times).cut(x0.size(1)) for times in (t - 1, t))
    return likelihood.discrete_diffusion(x0, pred_x0, before, level) * steps
