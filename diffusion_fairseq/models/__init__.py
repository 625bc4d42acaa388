"""Diffusion models, registered with fairseq when they are imported."""

from diffusion_fairseq.models import ddlm, diffuseq, diffusion_lm, genie, latent_classifier  # noqa: F401
