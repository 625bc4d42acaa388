"""Diffusion models, registered with fairseq when they are imported."""

from diffusion_fairseq.models import diffusion_lm, genie  # noqa: F401
