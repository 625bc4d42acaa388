"""An upper bound on -log p(tokens) of a denoiser of embeddings, in nats: reconstruction + diffusion + prior (Kingma et
al., 2021, eq. 11 to 15).

Shapes: x0, pred_x0 (B, L, D); tokens (B, L); levels of shape (), (B,), (B, L). Each function returns (B, L), a term per
position.
"""

from typing import Callable

import torch
from torch import Tensor

from diffusion_fairseq.diffusion.process import like
from diffusion_fairseq.diffusion.schedules import NoiseLevel


def snr(level: NoiseLevel) -> Tensor:
    """The signal-to-noise ratio alpha^2 / sigma^2."""
    return (level.alpha / level.sigma) ** 2


def reconstruction(scores: Callable[[Tensor], Tensor], xt: Tensor, tokens: Tensor, level: NoiseLevel) -> Tensor:
    """-log p(token | x_t) at the cleanest level, under Bayes' rule with all tokens equally likely: a softmax of
    -|x_t - alpha e|^2 / (2 sigma^2) over the embeddings e.

    Args:
        scores: y (n, D) -> y.e - |e|^2 / 2 (n, V), of all embeddings.
    """
    estimate = (xt.double() / like(level.alpha, xt.double())).flatten(0, 1)
    logits = scores(estimate.to(xt.dtype)).double() * snr(level).expand(tokens.shape).reshape(-1, 1)
    return -logits.log_softmax(dim=-1).gather(1, tokens.reshape(-1, 1)).view(tokens.shape)


def discrete_diffusion(x0: Tensor, pred_x0: Tensor, before: NoiseLevel, level: NoiseLevel) -> Tensor:
    """KL of the posterior under pred_x0 from that under x0, both with the posterior's variance, of the step from a
    level to the one before: (SNR(t-1) - SNR(t)) / 2 |x0 - pred_x0|^2 (Kingma et al., 2021, eq. 13)."""
    gain = like((snr(before) - snr(level)) / 2, x0.double()).squeeze(-1)
    return gain * (x0.double() - pred_x0.double()).square().sum(dim=-1)


def continuous_diffusion(x0: Tensor, pred_x0: Tensor, t: Tensor) -> Tensor:
    """The integrand -SNR'(t) / 2 |x0 - pred_x0|^2 for sigma = t, which is |x0 - pred_x0|^2 / t^3 (Kingma et al., 2021,
    eq. 15)."""
    return like(t.double() ** -3, x0.double()).squeeze(-1) * (x0.double() - pred_x0.double()).square().sum(dim=-1)


def prior(x0: Tensor, level: NoiseLevel) -> Tensor:
    """KL of q(x_T | x_0) from what generation starts from: N(0, 1), or N(0, sigma_T^2) where alpha = 1."""
    alone = (level.alpha == 1).all()
    scale = level.sigma if alone else torch.ones_like(level.sigma)
    ratio = like((level.sigma / scale) ** 2, x0.double())
    mean = (like(level.alpha / scale, x0.double()) * x0.double()) ** 2
    return ((ratio + mean - 1 - ratio.log()) / 2).sum(dim=-1)
