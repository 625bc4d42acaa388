#!/usr/bin/env bash
# Trains GENIE on CNN/DailyMail with the paper's settings (see README.md); more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
train --max-source-positions 512 --max-target-positions 180 --batch-size 32 --update-freq 8 "$@"
