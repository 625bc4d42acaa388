#!/usr/bin/env bash
# Samples and scores, the data's own row beside them: bash examples/c4/generate.sh [POSITIONS [options of fairseq-generate]]
# POSITIONS that are given: none (default: unconditional), 0:32 (prefix), 0:16,48:64 (inpainting). SCORER, a causal
# language model's folder or hub name, adds AR-NLL and MAUVE.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
positions=${1:-none}
shift || true
name=${positions//[:,]/-}
# Without a checkpoint of training, averaged.pt is taken as it is.
[[ ! -e $work/checkpoints/checkpoint_last.pt ]] || export_averaged
written "$work/generated-$name.txt" "$work/data-bin/shard0" --user-dir "$root/diffusion_fairseq" \
    --task diffusion_lm --gen-subset valid --sample-break-mode none --tokens-per-sample 64 \
    --given-positions "$positions" --path "$work/averaged.pt" \
    --bpe sentencepiece --sentencepiece-model "$work/sentencepiece.model" --solver euler --diffusion-steps 50 \
    --candidates 5 --nbest 5 --batch-size 64 "$@" >/dev/null
sed -n 's/<<unk>>/<unk>/g; s/^T-//p' "$work/generated-$name.txt" | sort -n | cut -f 2 >"$work/references-$name.txt"
scoring=()
if [[ $positions == 0:* ]]; then scoring+=(--source-prefixes); fi
if [[ -n ${SCORER:-} ]]; then scoring+=(--scorer "$SCORER" --mauve); fi
python "$root/scripts/evaluate_lm.py" "$work/generated-$name.txt" --reference "$work/references-$name.txt" \
    ${scoring[@]+"${scoring[@]}"} --json "$work/scores-$name.json"
