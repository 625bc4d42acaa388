#!/usr/bin/env bash
# Trains DiffuSeq on QQP with the paper's settings (see README.md); more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
architecture=(--arch diffuseq_base)
train --max-source-positions 64 --max-target-positions 63 --lr 1e-4 --warmup-updates 0 --total-num-update 50000 \
    --max-update 50000 --batch-size 64 --update-freq 32 --padding-in-mean --save-interval-updates 10000 \
    --keep-interval-updates -1 "$@"
