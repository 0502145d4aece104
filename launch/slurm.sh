#!/usr/bin/env bash
#SBATCH --job-name=cdisc
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
# One run of cdisc as a Slurm job that outlives its time limit.
#
#   sbatch launch/slurm.sh --config=configs/colormnist.py:small --workdir=runs/colormnist
#
# Takes what `python -m cdisc.main` takes. Two minutes before the limit the job stops the run and queues itself again;
# a run goes on from what it had finished, so nothing but those two minutes is lost. Submit from the repository's root,
# where the virtual environment .venv was made by the README's command.
set -euo pipefail

.venv/bin/python -m cdisc.main "$@" &
run=$!

requeue() {
  kill -TERM "$run"
  wait "$run" && exit 0
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap requeue USR1

wait "$run"
