#!/usr/bin/env bash
# sbatch cluster/slurm.sh jobs/ppo.yaml run.dir=/shared/runs/ppo ...      Not run here.
# One task a node: the first node is Ray's head, the others join it, the job runs on the head.
#SBATCH --job-name=rlhf-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
set -euo pipefail

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$PWD/.ray-token-$SLURM_JOB_ID
(umask 077 && openssl rand -hex 32 > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
export PATH=$PWD/.venv/bin:$PATH

srun --nodes=1 --ntasks=1 --overlap -w "$head" ray start --head --port=6379 --block &
sleep 20
for node in "${nodes[@]:1}"; do
  srun --nodes=1 --ntasks=1 --overlap -w "$node" ray start --address="$head:6379" --block &
done
sleep 20
srun --nodes=1 --ntasks=1 --overlap -w "$head" rlhf-ray train "$@" cluster.address="$head:6379"
