#!/usr/bin/env bash
# Gigaword as it is distributed -> binarised pairs: bash examples/gigaword/prepare.sh FOLDER (see README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
prepare "$@"
