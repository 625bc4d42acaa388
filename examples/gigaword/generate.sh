#!/usr/bin/env bash
# Ten candidates for every test source, and their scores; more options go to fairseq-generate.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
glge=gigaword generate --max-source-positions 128 --max-target-positions 48 "$@"
