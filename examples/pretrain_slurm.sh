#!/bin/bash
# Pretrain on several machines under Slurm:
#
#     sbatch examples/pretrain_slurm.sh
#     DATA=/data/imagenet RUN=runs/r152 MODEL=resnet152x4 sbatch --nodes=8 examples/pretrain_slurm.sh --parallel fsdp
#
# One torchrun per machine starts one process per GPU; they meet on the first machine. Five minutes before the time limit,
# and when the job is preempted, the run finishes its step and saves; the job is queued again and goes on from there.
# DATA and RUN are on storage that all machines see. What follows the script's name is given to bitfast.

#SBATCH --job-name=bitfast
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=bitfast-%j.log

set -u

DATA=${DATA:-imagenet/}
RUN=${RUN:-runs/upstream}
MODEL=${MODEL:-resnet50x1}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

stopped=
trap 'stopped=yes; kill -TERM "$step"' USR1 TERM

# The same command starts the run and continues it.
srun --kill-on-bad-exit=0 torchrun \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node gpu --shutdown-timeout 240 \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
    -m bitfast pretrain "$DATA" --model "$MODEL" --out "$RUN" --resume "$@" &
step=$!

# A signal ends one wait; the step is over when no process is left to wait for.
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    code=$?
done

if [ -f "$RUN/result.json" ]; then
    exit 0
elif [ -n "$stopped" ]; then
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
