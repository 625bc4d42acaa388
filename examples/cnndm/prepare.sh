#!/usr/bin/env bash
# CNN/DailyMail as it is distributed -> binarised pairs: bash examples/cnndm/prepare.sh FOLDER (see README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
prepare "${1:-}" --symbol "[x_sep]" "${@:2}"
