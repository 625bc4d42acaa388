"""Latents in float16, whose range an estimate may exceed."""

import torch
from torch import Tensor

LARGEST_LATENT = 64.0  # a coordinate in float16: far beyond any embedding's


def bounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Latents in the dtype of what computes with them. An estimate of x0 from predicted noise has no bound at the
    noisiest levels, where it or its products would overflow float16."""
    half = torch.float16 in (dtype, torch.get_autocast_dtype(x.device.type)
                             if torch.is_autocast_enabled(x.device.type) else dtype)
    return (x.clamp(-LARGEST_LATENT, LARGEST_LATENT) if half else x).to(dtype)
