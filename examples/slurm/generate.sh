#!/usr/bin/env bash
# Generates one shard per process, in OUT/shard*.txt: OUT=runs/x srun --ntasks 16 --gpus-per-task 1 --requeue \
#     bash examples/slurm/generate.sh DATA [options of fairseq-generate], or under torchrun --no-python bash ...
# Started again after a fault, it goes on where it was; text of other options or another model is kept as
# shard0000.txt.1. Then: python scripts/merge_generations.py OUT/shard*.txt --output FILE
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
shard=${RANK:-${SLURM_PROCID:-0}} shards=${WORLD_SIZE:-${SLURM_NTASKS:-1}}
: "${OUT:?names the folder of the shards}"
mkdir -p "$OUT"
if [[ ${LOCAL_RANK-} ]]; then # torchrun gives every process all GPUs that it was given: one each, out of those
    IFS=, read -ra gpus <<<"${CUDA_VISIBLE_DEVICES-}"
    export CUDA_VISIBLE_DEVICES=${gpus[LOCAL_RANK]-$LOCAL_RANK}
fi
written "$OUT/shard$(printf %04d "$shard").txt" "$@" --num-shards "$shards" --shard-id "$shard" >/dev/null
