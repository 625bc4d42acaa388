#!/usr/bin/env bash
# C4's JSON lines -> sharded, binarised text: bash examples/c4/prepare.sh c4/en/*.json.gz [options of prepare_corpus.py].
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
python "$root/scripts/prepare_corpus.py" --out "$work" --json-field text $(vocabulary 32000 "$@") --no-segment \
    --deduplicate none "$@"
