"""Tasks, registered with fairseq when they are imported."""

from diffusion_fairseq.tasks import seq2seq_diffusion  # noqa: F401
