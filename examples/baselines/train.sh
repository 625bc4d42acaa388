#!/usr/bin/env bash
# Trains one of fairseq's own systems on a recipe's pairs: bash examples/baselines/train.sh cmlm runs/xsum [options].
source "$(dirname "${BASH_SOURCE[0]}")/systems.sh"
shared=--share-all-embeddings
cmp -s "$work/data-bin/dict.src.txt" "$work/data-bin/dict.tgt.txt" || shared=--share-decoder-input-output-embed
fairseq-train "${common[@]}" "${options[@]}" "${criterion[@]}" "$shared" --optimizer adam \
    --adam-betas '(0.9, 0.98)' --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000 --weight-decay 0.01 \
    --label-smoothing 0.1 --dropout 0.1 --max-tokens 8192 --max-update 120000 \
    --skip-invalid-size-inputs-valid-test --save-dir "$work/$system" --no-epoch-checkpoints "$@"
