#!/usr/bin/env bash
# Texts of a label, one for every test line and as long as it, and their scores: bash examples/control/generate.sh web
# [options of fairseq-generate].
label=${1:?"usage: bash examples/control/generate.sh LABEL [options of fairseq-generate]"}
shift
source "$(dirname "${BASH_SOURCE[0]}")/../language_model.sh"
generate_lm --classifier "$work/classifier/checkpoint_best.pt" --classifier-label "$label" \
    --classifier-scale 10 "$@"
