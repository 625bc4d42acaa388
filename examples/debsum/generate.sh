#!/usr/bin/env bash
# Ten synopses for every test description, and their scores; more options go to fairseq-generate.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
generate --max-source-positions 128 --max-target-positions 40 "$@"
