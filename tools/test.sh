#!/usr/bin/env bash
# Runs the default test-suite after installing what is missing. Arguments go to pytest:
#   bash tools/test.sh                        everything but the slow and the GPU tests
#   bash tools/test.sh -m slow                the slow ones
#   bash tools/test.sh tests/ops -k routing   a part
# WORKERS sets the number of pytest processes (default: one per core; 0: none).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/environment.sh
source tools/environment.sh
castvision_activate
castvision_install dev
# one thread a process: the processes share the cores
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -n "${WORKERS:-auto}" "$@"
