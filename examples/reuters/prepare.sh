#!/usr/bin/env bash
# Reuters-21578 -> sentences and their binarised words: bash examples/reuters/prepare.sh FOLDER (see README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../language_model.sh"
prepare_lines "$@"
