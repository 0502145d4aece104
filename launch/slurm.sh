#!/usr/bin/env bash
#SBATCH --job-name=cdisc
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# One run of cdisc as a Slurm job that outlives its time limit, on one node or on several with a process on each.
#
#   sbatch launch/slurm.sh --config=configs/colormnist.py:small --workdir=runs/colormnist
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh --config=configs/celeba.py --workdir=runs/celeba \
#     --config.data.root=FOLDER
#
# Takes what `python -m cdisc.main` takes. Two minutes before the limit the job stops the run and queues itself again;
# a run goes on from what it had finished, so nothing but those two minutes is lost. Submit from the repository's root,
# where the virtual environment .venv was made by the README's command, and for GPUs completed by
# `.venv/bin/pip install '.[cuda]'`; all nodes must see that folder and the workdir.
set -euo pipefail

run=(.venv/bin/python -m cdisc.main)
if ((${SLURM_JOB_NUM_NODES:?submit this script with sbatch} > 1)); then
  run+=(--distributed)
fi
if ((${SLURM_NTASKS_PER_NODE:-1} > 1)); then
  echo "slurm.sh: one process has all GPUs of its node: leave --ntasks-per-node out." >&2
  exit 2
fi

# From Slurm 22.05 on, srun does not know how many cores the job has asked for. When one process has ended, the others
# have a minute to do the same.
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
srun --wait=60 "${run[@]}" "$@" &
running=$!

requeue() {
  # Not `kill`: srun answers SIGTERM by killing its processes, and these are to save what they have.
  scancel --signal=TERM "$SLURM_JOB_ID"
  # Not longer: at the limit Slurm would kill this script, and queue nothing.
  timeout 90 tail --pid="$running" -f /dev/null && wait "$running" && exit 0
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap requeue USR1

wait "$running"
