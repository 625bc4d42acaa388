"""Loss terms as masked sums per example: any batching and any padding gives the same gradient.

Shapes: x0, pred (B, L, D); tokens (B, L); mask (B, L), a weight per position (a bool mask will do). Each function
returns (B,), the sum over positions of a mean over the latent width (or of a negative log-likelihood, in nats).
"""

from torch import Tensor

from diffusion_fairseq.diffusion.process import like


def masked_mse(pred: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum over positions of the squared error, averaged over the latent width."""
    return weighted_sum(((target - pred) ** 2).mean(dim=-1), mask)


def weighted_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over positions of values (B, L): of -log p(y | x_0) it is GENIE's eq. 12, third term."""
    return (values * mask).sum(dim=-1)


def prior_term(x0: Tensor, alpha: Tensor, mask: Tensor) -> Tensor:
    """The part of the prior's KL that depends on x_0: mean of (alpha_T x_0)^2, the published tT term."""
    return weighted_sum((like(alpha, x0) * x0).square().mean(dim=-1), mask)
