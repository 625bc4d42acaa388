#!/usr/bin/env bash
# Text files -> sharded, binarised documents: bash examples/cpd/prepare.sh TEXT... [options of scripts/prepare_corpus.py].
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
python "$root/scripts/prepare_corpus.py" --out "$work" $(vocabulary 30000 "$@") "$@"
