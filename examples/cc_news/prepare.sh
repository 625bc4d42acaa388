#!/usr/bin/env bash
# CC-News, half of it -> sentences and their binarised words: bash examples/cc_news/prepare.sh FOLDER (see README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../language_model.sh"
prepare_lines "${1:-}" --share 0.5 "${@:2}"
