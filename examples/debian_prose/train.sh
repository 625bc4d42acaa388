#!/usr/bin/env bash
# Trains a language model on English prose with the paper's settings (see README.md); more options go to fairseq-train.
source "$(dirname "${BASH_SOURCE[0]}")/../language_model.sh"
train_lm "$@"
