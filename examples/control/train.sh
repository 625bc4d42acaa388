#!/usr/bin/env bash
# Trains the classifier that leads it (see README.md); more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../language_model.sh"
python "$root/scripts/export_checkpoint.py" --ema "$work/checkpoints/checkpoint_best.pt" --output "$work/averaged.pt"
fairseq-train "$work/labelled" --user-dir "$root/diffusion_fairseq" --task latent_classification \
    --arch latent_classifier_small --diffusion-path "$work/averaged.pt" --criterion latent_classification \
    --optimizer adam --lr 5e-4 --warmup-updates 500 --lr-scheduler inverse_sqrt --weight-decay 0.01 --clip-norm 1 \
    --batch-size 64 --max-update 10000 --patience 10 --best-checkpoint-metric accuracy \
    --maximize-best-checkpoint-metric --no-epoch-checkpoints --save-dir "$work/classifier" "$@"
