"""What ties continuous latents to tokens: rounding, clamping, lengths. torch only, no fairseq."""
