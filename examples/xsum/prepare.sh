#!/usr/bin/env bash
# XSum as it is distributed -> binarised pairs: bash examples/xsum/prepare.sh FOLDER (see README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
prepare "$@"
