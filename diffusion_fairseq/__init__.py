"""Diffusion language models for fairseq."""
from diffusion_fairseq import criterions, models, scoring, tasks  # noqa: F401
