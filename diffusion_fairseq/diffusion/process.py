"""The forward process q, its posterior between any two levels, and conversions between x0, eps and score."""

from typing import Tuple

from torch import Tensor

from diffusion_fairseq.diffusion.schedules import NoiseLevel


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient for all, per example or per position, (), (B,), (1, L) or (B, L), in the dtype of x (B, L, ...) and
    shaped to multiply it."""
    if coefficient.dim() == 0:
        # A number on the host multiplies a tensor on any device.
        return coefficient.to(x.dtype)
    # Levels by position are few numbers on the host: copied there, and nothing waits for the device.
    coefficient = coefficient.to(x.device, x.dtype, non_blocking=True)
    return coefficient.reshape(coefficient.shape + (1,) * (x.dim() - coefficient.dim()))


def q_sample(x0: Tensor, level: NoiseLevel, noise: Tensor) -> Tensor:
    """Sample q(x_t | x_0) (Ho et al., 2020, eq. 4): x0, noise (B, L, ...), any level."""
    return like(level.alpha, x0) * x0 + like(level.sigma, x0) * noise


def noised_embedding(embedded: Tensor, first: NoiseLevel, noise: Tensor) -> Tensor:
    """x_0 of embeddings (B, L, D): they and the noise of the first level (Li et al., 2022, section 4.2)."""
    return embedded + like(first.sigma, embedded) * noise


def transition(s: NoiseLevel, t: NoiseLevel) -> Tuple[Tensor, Tensor]:
    """alpha_ts and var_ts of q(x_t | x_s), s earlier than t (Kingma et al., 2021, section 3)."""
    alpha_ts = t.alpha / s.alpha
    return alpha_ts, t.sigma**2 - alpha_ts**2 * s.sigma**2


def posterior(x0: Tensor, xt: Tensor, s: NoiseLevel, t: NoiseLevel) -> Tuple[Tensor, Tensor]:
    """Mean (like xt) and variance (like s.alpha) of q(x_s | x_t, x_0) for any s < t (Ho et al., 2020, eq. 7)."""
    alpha_ts, var_ts = transition(s, t)
    mean = (
        like(alpha_ts * s.sigma**2 / t.sigma**2, xt) * xt
        + like(s.alpha * var_ts / t.sigma**2, xt) * x0
    )
    return mean, var_ts * s.sigma**2 / t.sigma**2


def x0_from_eps(xt: Tensor, eps: Tensor, level: NoiseLevel) -> Tensor:
    """The x0 that xt and its noise imply."""
    return (xt - like(level.sigma, xt) * eps) / like(level.alpha, xt)


def eps_from_x0(xt: Tensor, x0: Tensor, level: NoiseLevel) -> Tensor:
    """The noise that xt and its x0 imply."""
    return (xt - like(level.alpha, xt) * x0) / like(level.sigma, xt)


def score_from_x0(xt: Tensor, x0: Tensor, level: NoiseLevel) -> Tensor:
    """The gradient of log q(x_t | x_0) at xt: (alpha x0 - xt) / sigma^2."""
    return (like(level.alpha, xt) * x0 - xt) / like(level.sigma**2, xt)


def x0_from_score(xt: Tensor, score: Tensor, level: NoiseLevel) -> Tensor:
    """The x0 that a score implies (Tweedie's formula)."""
    return (xt + like(level.sigma**2, xt) * score) / like(level.alpha, xt)
