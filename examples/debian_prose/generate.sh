#!/usr/bin/env bash
# A text from nothing for every test sentence, as long as it, and their scores; more options go to fairseq-generate.
source "$(dirname "${BASH_SOURCE[0]}")/../language_model.sh"
generate_lm "$@"
