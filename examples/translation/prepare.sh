#!/usr/bin/env bash
# Package descriptions in German and English -> binarised pairs: bash examples/translation/prepare.sh [FOLDER of indexes]
# [options of binarise.py] (see README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
indexes=()
if [[ ${1:-} && $1 != -* ]]; then
    indexes=(--indexes "$1")
    shift
fi
python "$root/scripts/prepare_translation.py" --out "$work/text" ${indexes[@]+"${indexes[@]}"}
python "$root/scripts/binarise.py" "$work" --vocabulary 8000 "$@"
