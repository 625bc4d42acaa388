#!/usr/bin/env bash
# Package descriptions and synopses -> binarised pairs: bash examples/debsum/prepare.sh [FOLDER of indexes]
# [options of binarise.py] (see README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
prepare_descriptions "$@"
