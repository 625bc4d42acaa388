#!/usr/bin/env bash
# How much the candidates of a source differ: a diffusion model's (WORK/generated.txt, which generate.sh of its recipe
# has written) against as many of the transformer's by beam search, diverse beam search and sampling:
# bash examples/baselines/diversity.sh runs/xsum [options of fairseq-generate].
usage="usage: bash $0 WORK [options of fairseq-generate]; WORK holds data-bin, generated.txt and the folder transformer"
set -- transformer "$@"
source "$(dirname "${BASH_SOURCE[0]}")/systems.sh"
number=$(grep -cP '^H-0\t' "$work/generated.txt") || {
    echo "error: $work/generated.txt holds no hypotheses: run generate.sh of the recipe first" >&2
    exit 1
}
declare -A ways=([beam]="" [diverse]="--diverse-beam-groups $number --diverse-beam-strength 0.5"
    [sampling]="--sampling --sampling-topp 0.95")
rows=()
for way in beam diverse sampling; do
    read -ra decoding <<<"${ways[$way]}"
    fairseq-generate "${common[@]}" "${options[@]:0:2}" --path "$work/transformer/checkpoint_last.pt" --gen-subset test \
        --bpe sentencepiece --sentencepiece-model "$work/sentencepiece.model" --batch-size 16 \
        --beam "$number" --nbest "$number" ${decoding[@]+"${decoding[@]}"} "$@" >"$work/transformer-$way.txt"
    rows+=(--system "transformer, $way=$work/transformer-$way.txt")
done
python "$root/scripts/evaluate.py" "$work/generated.txt" --name diffusion "${rows[@]}" --references "$work/text/test.tgt" \
    --sources "$work/text/test.src" --train-target "$work/text/train.tgt" --json "$work/diversity.json"
