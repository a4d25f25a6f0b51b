#!/usr/bin/env bash
# The laws on a GPU, and one table of speed and memory: at most eight minutes on an H100.
#
#     bash experiments/device_check.sh            # on the first CUDA device
#     bash experiments/device_check.sh --toy      # at toy size on the CPU, to see that it runs
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUNBUFFERED=1
if [ "${1:-}" = --toy ]; then
    exec python experiments/device_check.py --toy --rounds 6 --no-compiled
fi
status=0
timeout 150 python -m pytest -q -rs -p no:cacheprovider tests/cuda || status=$?
timeout 320 python experiments/device_check.py --device cuda --seconds 300 "$@" || status=$?
exit "$status"
