#!/usr/bin/env bash
# Trains the diffusion language model that is to be led (see README.md); more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../language_model.sh"
train_lm --arch diffusion_lm_small --noise-schedule sqrt --lr 5e-4 --warmup-updates 1000 --clip-norm 1 "$@"
