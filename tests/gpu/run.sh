#!/usr/bin/env bash
# One CUDA device, in one go: what needs it, then MFU, rollout throughput, weight sync and a step against TRL (where its 1.16 is in
# build/peers) of 0.5 to 1.5 billion parameters. A part that fails does not stop the next. PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
status=0
part() {
  echo "== $*"
  local began=$SECONDS
  "$python" -m "$@" || { status=1; echo "!! failed: $*"; }
  echo "== $((SECONDS - began)) s"
}
part pytest -m gpu tests/gpu
part tests.benchmarks.learner_vs_peak --device cuda --dtype bfloat16 --shape 0.5B 1.5B --vocab 32000 --count 256 --longest 1008 \
  --budget 32768 --rounds 3
part tests.benchmarks.rollout_vs_generate --device cuda --dtype bfloat16 --shape 0.5B --count 512 --batch 256 --longest 256 --rounds 2
part tests.benchmarks.weight_sync --device cuda --layers 24 --rounds 6
part tests.benchmarks.grpo_vs_trl --large --vocab 32000 --precision bfloat16 --rounds 3
part tests.benchmarks.table
exit $status
