#!/usr/bin/env bash
# Trains the diffusion language model that is to be led (see README.md); more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
fairseq-train "$work/data-bin/input0" --user-dir "$root/diffusion_fairseq" --task diffusion_lm --tokens-per-sample 32 \
    --arch diffusion_lm_small --criterion diffusion_anchor --anchor-weight 1 --optimizer adam --lr 5e-4 \
    --lr-scheduler inverse_sqrt --warmup-updates 1000 --clip-norm 1 --batch-size 64 --max-update 40000 --store-ema \
    --ema-fp32 --ema-decay 0.999 --save-interval-updates 2000 --keep-interval-updates 1 --no-epoch-checkpoints \
    --save-dir "$work/lm" "$@"
python "$root/scripts/export_checkpoint.py" --ema "$work/lm/checkpoint_last.pt" --output "$work/lm.pt"
