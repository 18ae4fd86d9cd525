#!/usr/bin/env bash
# sbatch cluster/slurm.sh jobs/rl/ppo.yaml run.dir=/shared/runs/ppo ...
# One task a node: Ray's head on the first, a raylet on each, the job on the head. Five minutes before the time is up the job stops with
# a checkpoint, and is queued again. Edit the #SBATCH lines; cluster/README.md says the rest.
#SBATCH --job-name=rlhf-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

export PATH="$PWD/.venv/bin:$PATH"
port=${RAY_PORT:-$((20000 + SLURM_JOB_ID % 20000))}  # two jobs of one node do not meet
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}

# A token that all nodes read and nobody else does; srun hands the path on.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$PWD/.ray-token-$SLURM_JOB_ID"
(umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")
raylets=()
# shellcheck disable=SC2317,SC2329  # called at exit
finish() {
  kill "${raylets[@]}" 2> /dev/null || true
  wait || true
  rm -f "$RAY_AUTH_TOKEN_PATH"
}
trap finish EXIT

on=(srun --nodes=1 --ntasks=1 --overlap --nodelist)
"${on[@]}" "$head" ray start --head --port="$port" --include-dashboard=false --disable-usage-stats --block &
raylets+=($!)
until "${on[@]}" "$head" ray health-check --address="$head:$port" > /dev/null 2>&1; do
  kill -0 "${raylets[0]}"  # the head has died: so does this script
  sleep 2
done
for node in "${nodes[@]:1}"; do
  "${on[@]}" "$node" ray start --address="$head:$port" --disable-usage-stats --block &
  raylets+=($!)
done
count='import ray, sys; ray.init(address=sys.argv[1], logging_level="ERROR"); print(sum(n["Alive"] for n in ray.nodes()))'
for _ in $(seq 60); do
  [ "$("${on[@]}" "$head" python3 -c "$count" "$head:$port")" -ge "${#nodes[@]}" ] && break
  sleep 5
done

"${on[@]}" "$head" rlhf-ray train "$@" cluster.address="$head:$port" &
job=$!
trap 'kill -TERM "$job"' TERM  # srun hands it to the job, which ends its step
code=0
wait "$job" || code=$?
while kill -0 "$job" 2> /dev/null; do  # a signal ends the first wait, not the job
  code=0
  wait "$job" || code=$?
done
[ "$code" -ne 3 ] || scontrol requeue "$SLURM_JOB_ID"
exit "$code"
