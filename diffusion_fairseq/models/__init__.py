"""Diffusion models, registered with fairseq when they are imported."""

from diffusion_fairseq.models import (  # noqa: F401
    ddlm,
    ddlm_classifier,
    diffuseq,
    diffusion_lm,
    genie,
    latent_classifier,
)
