#!/bin/bash
# sbatch dpa/launch/slurm.sh RECIPE [flags of dpa.train ...]
# One task a node, eight GPUs a node; torchrun starts a process a GPU. A job that is cut short and queued again resumes.
#SBATCH --job-name=dpa
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=slurm-%j.log
set -euo pipefail
recipe=${1:?give the name of a recipe, see python -m dpa.recipes}
shift
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=8
srun .venv/bin/torchrun \
    --nnodes="$SLURM_NNODES" --nproc_per_node="$SLURM_GPUS_ON_NODE" \
    --rdzv_id="$SLURM_JOB_ID" --rdzv_backend=c10d --rdzv_endpoint="$head:29500" \
    -m dpa.train --recipe "$recipe" --stage all --deepspeed dpa/launch/zero2.json "$@"
