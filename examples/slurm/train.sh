#!/usr/bin/env bash
# Trains on all GPUs of some nodes: sbatch --nodes 2 examples/slurm/train.sh DATA [options of fairseq-train], or by a
# recipe: sbatch --nodes 2 examples/slurm/train.sh examples/cpd/train.sh [options of fairseq-train].
#SBATCH --job-name diffusion --ntasks-per-node 1 --gpus-per-node 8 --cpus-per-task 64 --time 24:00:00
#SBATCH --requeue --open-mode append --output %x.%j.log --signal B:USR1@120
set -euo pipefail
# Two minutes before the time is over, and where the job is preempted: the job is queued again, and goes on from the
# last checkpoint. So --save-interval-updates says how much is lost, and all data and --save-dir lie where every node
# sees them.
trap 'scontrol requeue "$SLURM_JOB_ID"; echo "queued again"; wait "$job"' USR1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [[ ${1:-} == *.sh ]]; then
    command=(--no-python bash)
else
    command=("$(command -v fairseq-train || echo fairseq-train)")
fi
# A process that dies, with its node even, ends this round: torchrun starts all of them again, at most so many times.
srun --kill-on-bad-exit=0 torchrun --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${PROCESSES:-8}" \
    --max-restarts "${RESTARTS:-3}" --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID" --rdzv-endpoint "$head:${PORT:-29500}" \
    "${command[@]}" "$@" &
job=$!
wait "$job"
