#!/usr/bin/env bash
# The test set by one of fairseq's own systems, scored: bash examples/baselines/generate.sh cmlm runs/xsum [options].
# ITERATIONS is how often a system refines its text (default: 9; 0: Table 1's NAR rows); given, it is part of the names.
source "$(dirname "${BASH_SOURCE[0]}")/systems.sh"
decoding=(--beam 5) row=$system
if [[ ${ITERATIONS-} ]]; then
    [[ $ITERATIONS =~ ^[0-9]+$ && ${iterations:-0} != 0 ]] || {
        echo "error: ITERATIONS is a whole number, of inat, cmlm, levenshtein or insertion: got $ITERATIONS of $system" >&2
        exit 1
    }
    iterations=$ITERATIONS row=$system-$ITERATIONS
fi
if [[ $iterations ]]; then
    decoding=(--iter-decode-max-iter "$iterations" --iter-decode-eos-penalty 0 --beam 1)
fi
fairseq-generate "${common[@]}" "${options[@]:0:2}" --path "$work/$system/checkpoint_last.pt" --gen-subset test \
    --bpe sentencepiece --sentencepiece-model "$work/sentencepiece.model" --batch-size 64 \
    "${decoding[@]}" "$@" | tee "$work/$row.txt"
python "$root/scripts/evaluate.py" "$work/$row.txt" --name "$row" --references "$work/text/test.tgt" \
    --sources "$work/text/test.src" --train-target "$work/text/train.tgt"
