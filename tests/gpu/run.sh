#!/usr/bin/env bash
# A first day on GPUs in one command: `tests/gpu/run.sh [--only STEP ...] [--out FOLDER]`. Each step's seconds and figures are in
# FOLDER/first_day.json (build/gpu). See tests/gpu/first_day.py for the steps. PYTHON names the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" -m tests.gpu.first_day "$@"
