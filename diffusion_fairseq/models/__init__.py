"""Diffusion models, registered with fairseq when they are imported."""

from diffusion_fairseq.models import diffuseq, diffusion_lm, genie  # noqa: F401
