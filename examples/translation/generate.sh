#!/usr/bin/env bash
# Ten candidates for every test source, and their scores; more options go to fairseq-generate.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
generate --max-source-positions 160 --max-target-positions 160 "$@"
