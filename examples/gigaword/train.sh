#!/usr/bin/env bash
# Trains GENIE on Gigaword with the paper's settings (see README.md); more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
train --max-source-positions 128 --max-target-positions 48 --batch-size 64 --update-freq 4 "$@"
