"""Training objectives, registered with fairseq when they are imported."""

from diffusion_fairseq.criterions import anchor, latent_classification, score_interpolation, vlb  # noqa: F401
