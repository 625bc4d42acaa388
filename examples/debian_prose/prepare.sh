#!/usr/bin/env bash
# What prepare_prose.py has made -> sentences and their binarised words: bash examples/debian_prose/prepare.sh FOLDER.
source "$(dirname "${BASH_SOURCE[0]}")/../language_model.sh"
prepare_lines "$@"
