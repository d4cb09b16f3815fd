#!/usr/bin/env bash
# Runs the default test-suite with the lowest release of every requirement that setup.cfg allows, in .venv-floors; arguments
# go to pytest. PYTHON names the interpreter that makes the environment (default: python3.11). For the newest releases on
# another Python: python3.13 -m venv .venv313 && source .venv313/bin/activate && bash tools/test.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ ! -x .venv-floors/bin/uv ]]; then
    "${PYTHON:-python3.11}" -m venv .venv-floors
    .venv-floors/bin/python -m pip install --quiet --disable-pip-version-check uv
fi
# shellcheck disable=SC1091
source .venv-floors/bin/activate
uv pip install --quiet --resolution lowest-direct --editable '.[dev]'
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -n "${WORKERS:-auto}" "$@"
