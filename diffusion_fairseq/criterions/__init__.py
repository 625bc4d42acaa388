"""Training objectives, registered with fairseq when they are imported."""

from diffusion_fairseq.criterions import vlb  # noqa: F401
