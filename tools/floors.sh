#!/usr/bin/env bash
# Runs the default test-suite with other releases than one's own, in an environment made for it; arguments go to pytest.
#   bash tools/floors.sh                                      the lowest releases that setup.cfg allows, Python 3.11
#   RELEASES=highest PYTHON=python3.13 bash tools/floors.sh   the newest, on another Python
# PYTHON names the interpreter; FOLDER/.venv-RELEASES-VERSION is kept for the next time (6 GB with a GPU's torch), where
# FOLDER is ENVIRONMENTS, or the checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
releases="${RELEASES:-lowest-direct}"
python="${PYTHON:-python3.11}"
version="$("$python" -c 'import sys; print(*sys.version_info[:2], sep=".")')"
folder="${ENVIRONMENTS:-$PWD}/.venv-$releases-$version"
if [[ ! -x "$folder/bin/uv" ]]; then
    "$python" -m venv "$folder"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check uv
fi
# shellcheck disable=SC1091
source "$folder/bin/activate"
uv pip install --quiet --upgrade --resolution "$releases" --editable '.[dev]'
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python -W error -c "import castvision"
exec python -m pytest -n "${WORKERS:-auto}" "$@"
