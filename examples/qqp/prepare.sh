#!/usr/bin/env bash
# QQP as it is distributed -> binarised pairs: bash examples/qqp/prepare.sh FOLDER (see README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
prepare "$@"
