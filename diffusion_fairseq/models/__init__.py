"""Diffusion models, registered with fairseq when they are imported."""

from diffusion_fairseq.models import genie  # noqa: F401
