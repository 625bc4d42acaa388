#!/usr/bin/env bash
# Trains a small GENIE that copies from its source, in 90 minutes on a CPU core (see README.md); more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
fairseq-train "$work/data-bin" "${task[@]}" --max-source-positions 128 --max-target-positions 40 \
    --arch genie_small --share-embeddings --copy-source --criterion diffusion_vlb --timesteps-per-encoding 4 \
    --optimizer adam --adam-betas '(0.9, 0.98)' --lr 3e-3 --lr-scheduler polynomial_decay --warmup-updates 200 \
    --total-num-update 3600 --max-update 3600 --clip-norm 1.0 --weight-decay 0.01 --max-tokens 6000 --store-ema --ema-fp32 \
    --ema-decay 0.99 --disable-validation --save-interval-updates 300 --no-epoch-checkpoints \
    --save-dir "$work/checkpoints" "$@"
