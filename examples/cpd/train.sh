#!/usr/bin/env bash
# Pre-trains GENIE by continuous paragraph denoise with the paper's settings; more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
shards=$(printf '%s:' "$work"/data-bin/shard*)
fairseq-train "${shards%:}" --user-dir "$root/diffusion_fairseq" --task cpd_pretrain --document-break blank \
    --tokens-per-sample 512 --max-source-positions 512 --max-target-positions 154 --paragraph-ratio 0.3 \
    "${architecture[@]}" --criterion diffusion_vlb --optimizer adam --lr 1e-4 \
    --lr-scheduler polynomial_decay --warmup-updates 10000 --total-num-update 2000000 --max-update 2000000 \
    --batch-size 64 --update-freq 8 --store-ema --ema-fp32 --ema-decay 0.9999 --save-interval-updates 10000 \
    --keep-interval-updates 2 --no-epoch-checkpoints --save-dir "$work/checkpoints" "$@"
export_averaged "$@"
