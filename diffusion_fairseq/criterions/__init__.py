"""Training objectives, registered with fairseq when they are imported."""

from diffusion_fairseq.criterions import anchor, vlb  # noqa: F401
