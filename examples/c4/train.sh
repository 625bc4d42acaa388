#!/usr/bin/env bash
# Trains a DDLM with the paper's settings (table 1); more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
shards=$(printf '%s:' "$work"/data-bin/shard*)
fairseq-train "${shards%:}" --user-dir "$root/diffusion_fairseq" --task diffusion_lm --sample-break-mode none \
    --tokens-per-sample 64 --masking span --arch ddlm_base --criterion score_interpolation --t-max 10 \
    --optimizer adam --lr 3e-5 --lr-scheduler cosine --warmup-updates 10000 --max-update 1000000 --clip-norm 1.0 \
    --batch-size 128 --update-freq 8 --store-ema --ema-fp32 --ema-decay 0.9999 --save-interval-updates 10000 \
    --keep-interval-updates 2 --no-epoch-checkpoints --save-dir "$work/checkpoints" "$@"
export_averaged "$@"
