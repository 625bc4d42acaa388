#!/usr/bin/env bash
# What the layers know before any fine-tuning: a linear probe of the section of a Debian package from its description,
# three seeds, random layers beside. bash examples/glue/probe.sh PRETRAINING CHECKPOINT [options of fairseq-train]
folder=$(dirname "${BASH_SOURCE[0]}")
source "$folder/../recipe.sh"
usage="usage: bash examples/glue/probe.sh PRETRAINING CHECKPOINT [options of fairseq-train]"
pretraining=${1:?"$usage"} checkpoint=${2:?"$usage"}
shift 2
python "$root/scripts/prepare_debsum.py" --out "$work/raw/debsection"
bash "$folder/prepare.sh" "$work/raw" "$pretraining" --tasks debsection
python "$root/scripts/study_glue.py" "$work" --tasks debsection --checkpoint "pretrained=$checkpoint" \
    --learning-rates 3e-3 --batch-sizes 64 --times 1,5,10 --seeds 3 --output "$work/probe" \
    -- --arch ddlm_classifier_base --freeze-encoder --max-epoch 5 "$@"
