"""Rules for one reverse step, x_t -> x_s, all with the same signature; SOLVERS names them.

A solver knows one callable, `denoise(xt, t, previous pred_x0) -> pred_x0`: parameterisation, self-conditioning
and clamping are wrappers round it. Levels hold 0-dimensional tensors, shared by all examples, or (1, L), one for each
position; the clean level is that of all positions at once.
"""

from typing import Callable, Dict, NamedTuple, Optional

import torch
from torch import Tensor

from diffusion_fairseq.diffusion.process import eps_from_x0, like, posterior, q_sample, transition
from diffusion_fairseq.diffusion.schedules import NoiseLevel

Denoise = Callable[[Tensor, Tensor, Optional[Tensor]], Tensor]


class SamplerState(NamedTuple):
    """What a step hands to the next one.

    Shapes: xt and pred_x0 (B, L, D), float32 or float64. `level` is the level of xt; pred_x0 is the estimate from
    which xt was made, and pred_level the level at which it was made (None before the first step).
    """

    xt: Tensor
    pred_x0: Optional[Tensor]
    level: NoiseLevel
    pred_level: Optional[NoiseLevel] = None


VARIANCES: Dict[str, Callable[[NoiseLevel, NoiseLevel], Tensor]] = {
    # Lower and upper bound of the reverse entropy (Ho et al., 2020, section 3.2).
    "posterior": lambda s, t: transition(s, t)[1] * s.sigma**2 / t.sigma**2,
    "beta": lambda s, t: transition(s, t)[1] * (s.sigma > 0),
}


def ddpm_step(
    denoise: Denoise, state: SamplerState, s: NoiseLevel, t: NoiseLevel, noise: Callable[[], Tensor],
    *, variance: str = "posterior",
) -> SamplerState:
    """Ancestral sampling (Ho et al., 2020, algorithm 2) between any two levels; no noise on the way to x_0."""
    x0 = denoise(state.xt, t.t, state.pred_x0)
    mean, _ = posterior(x0, state.xt, s, t)
    std = VARIANCES[variance](s, t).clamp(min=0).sqrt()
    xs = mean + like(std, mean) * noise() if (std > 0).any() else mean
    return SamplerState(xs, x0, s, t)


def ddim_step(
    denoise: Denoise, state: SamplerState, s: NoiseLevel, t: NoiseLevel, noise: Callable[[], Tensor],
    *, eta: float = 0.0,
) -> SamplerState:
    """DDIM (Song et al., 2021, eq. 12 and 16): eta 0 is deterministic, eta 1 is ancestral sampling."""
    x0 = denoise(state.xt, t.t, state.pred_x0)
    eps = eps_from_x0(state.xt, x0, t)
    std = eta * VARIANCES["posterior"](s, t).clamp(min=0).sqrt()
    direction = (s.sigma**2 - std**2).clamp(min=0).sqrt()
    xs = q_sample(x0, s._replace(sigma=direction), eps)
    if (std > 0).any():
        xs = xs + like(std, xs) * noise()
    return SamplerState(xs, x0, s, t)


def euler_step(
    denoise: Denoise, state: SamplerState, s: NoiseLevel, t: NoiseLevel, noise: Callable[[], Tensor]
) -> SamplerState:
    """Euler's method on the probability-flow ODE in sigma / alpha, which is DDIM without noise (Song et al., 2021,
    eq. 14); for sigma = t it is Karras et al. (2022), algorithm 1, and CDCD's sampler."""
    return ddim_step(denoise, state, s, t, noise, eta=0.0)


def heun_step(
    denoise: Denoise, state: SamplerState, s: NoiseLevel, t: NoiseLevel, noise: Callable[[], Tensor]
) -> SamplerState:
    """Heun's method on the same ODE (Karras et al., 2022, algorithm 1): order 2, two evaluations a step."""
    euler = euler_step(denoise, state, s, t, noise)
    if not s.sigma.any():
        return euler
    later = denoise(euler.xt, s.t, euler.pred_x0)
    # In sigma / alpha the slope is eps, and x_s = alpha_s (x_t / alpha_t + (ratio_s - ratio_t) slope).
    slope = (eps_from_x0(state.xt, euler.pred_x0, t) + eps_from_x0(euler.xt, later, s)) / 2
    ratio_change = s.sigma / s.alpha - t.sigma / t.alpha
    xs = like(s.alpha / t.alpha, slope) * state.xt + like(s.alpha * ratio_change, slope) * slope
    return SamplerState(xs, later, s, s)


def dpmpp_2m_step(
    denoise: Denoise, state: SamplerState, s: NoiseLevel, t: NoiseLevel, noise: Callable[[], Tensor]
) -> SamplerState:
    """DPM-Solver++(2M) (Lu et al., 2022, algorithm 2): order 2, one evaluation a step.

    x_0 is extrapolated in the log-SNR from this estimate and the last; the first step and the one to the clean
    level are of order 1, which is DDIM.
    """
    x0 = denoise(state.xt, t.t, state.pred_x0)
    extrapolated = x0
    if state.pred_level is not None and s.sigma.any():
        last, now, then = (torch.log(level.alpha / level.sigma) for level in (state.pred_level, t, s))
        share = (then - now) / (2 * (now - last))
        extrapolated = x0 + like(share, x0) * (x0 - state.pred_x0)
    ratio = s.sigma / t.sigma
    xs = like(ratio, x0) * state.xt + like(s.alpha - t.alpha * ratio, x0) * extrapolated
    return SamplerState(xs, x0, s, t)


SOLVERS: Dict[str, Callable[..., SamplerState]] = {
    "ddpm": ddpm_step, "ddim": ddim_step, "euler": euler_step, "heun": heun_step, "dpmpp-2m": dpmpp_2m_step,
}


def initial_state(noise: Tensor, level: NoiseLevel) -> SamplerState:
    """Pure noise: N(0, 1) for a variance-preserving schedule, N(0, sigma_T^2) for alpha = 1."""
    scale = level.sigma if (level.alpha == 1).all() else torch.ones_like(level.sigma)
    return SamplerState(noise * like(scale, noise), None, level)
