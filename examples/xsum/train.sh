#!/usr/bin/env bash
# Trains GENIE on XSum with the paper's settings (see README.md); more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
train --max-source-positions 512 --max-target-positions 64 --batch-size 64 --update-freq 4 "$@"
