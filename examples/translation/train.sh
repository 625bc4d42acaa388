#!/usr/bin/env bash
# Trains DiffuSeq on package descriptions (see README.md); more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
architecture=(--arch diffuseq_small)
train --max-source-positions 160 --max-target-positions 160 --lr 1e-3 --warmup-updates 1000 --total-num-update 50000 \
    --max-update 50000 --max-tokens 8192 --ema-decay 0.999 "$@"
