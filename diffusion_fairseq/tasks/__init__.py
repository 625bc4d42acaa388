"""Tasks, registered with fairseq when they are imported."""

from diffusion_fairseq.tasks import cpd_pretrain, diffusion_lm, latent_classification, seq2seq_diffusion  # noqa: F401
