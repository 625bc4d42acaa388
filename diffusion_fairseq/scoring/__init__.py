"""Scorers for fairseq's --scoring; importing this package registers them."""

from diffusion_fairseq.scoring import rouge  # noqa: F401
