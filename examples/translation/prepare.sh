#!/usr/bin/env bash
# Package descriptions in German and English -> binarised pairs: bash examples/translation/prepare.sh [FOLDER of indexes]
# [options of binarise.py] (see README.md).
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
prepare_descriptions "$@"
