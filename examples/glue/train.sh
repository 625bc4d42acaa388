#!/usr/bin/env bash
# Fine-tunes on one task: bash examples/glue/train.sh RTE --finetune-from-model runs/c4/averaged.pt [options of
# fairseq-train].
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
name=${1:?"usage: bash examples/glue/train.sh TASK [options of fairseq-train]"}
shift
read -ra options <"$work/$name/options.txt"
fairseq-train "$work/$name" --user-dir "$root/diffusion_fairseq" "${options[@]}" --arch ddlm_classifier_base \
    --classification-time 1 --max-positions 64 --shorten-method truncate --optimizer adam --weight-decay 0.01 --lr 3e-5 \
    --lr-scheduler fixed --batch-size 32 --no-epoch-checkpoints --save-dir "$work/$name/checkpoints" "$@"
