#!/usr/bin/env bash
# The test set by one of fairseq's own systems, scored: bash examples/baselines/generate.sh cmlm runs/xsum [options].
source "$(dirname "${BASH_SOURCE[0]}")/systems.sh"
decoding=(--beam 5)
if [[ $system != transformer ]]; then
    decoding=(--iter-decode-max-iter "$iterations" --iter-decode-eos-penalty 0 --beam 1)
fi
fairseq-generate "${common[@]}" "${options[@]:0:2}" --path "$work/$system/checkpoint_last.pt" --gen-subset test \
    --bpe sentencepiece --sentencepiece-model "$work/sentencepiece.model" --batch-size 64 \
    "${decoding[@]}" "$@" | tee "$work/$system.txt"
python "$root/scripts/evaluate.py" "$work/$system.txt" --name "$system" --references "$work/text/test.tgt" \
    --sources "$work/text/test.src" --train-target "$work/text/train.tgt"
