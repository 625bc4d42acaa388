#!/usr/bin/env bash
# GLUE's files -> runs/glue, with the subwords and the dictionary of a pre-training:
# bash examples/glue/prepare.sh FOLDER PRETRAINING [options of scripts/prepare_glue.py]
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
usage="usage: bash examples/glue/prepare.sh FOLDER PRETRAINING [options of scripts/prepare_glue.py]"
raw=${1:?"$usage"} pretraining=${2:?"$usage"}
shift 2
dictionary=$pretraining/data-bin/dict.txt
[[ -e $dictionary ]] || dictionary=$pretraining/data-bin/shard0/dict.txt
python "$root/scripts/prepare_glue.py" "$raw" --out "$work" --dictionary "$dictionary" \
    --sentencepiece-model "$pretraining/sentencepiece.model" "$@"
