#!/usr/bin/env bash
# Runs the tests of tests/clients after installing the libraries they are about (the extra `clients`, half a gigabyte).
# Arguments go to pytest:
#   bash tools/clients.sh                 all of them, a few minutes
#   bash tools/clients.sh -k torchgeo     a part
# anomalib is tested where it is installed; it is not in the extra, since it holds jsonargparse back.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/environment.sh
source tools/environment.sh
castvision_activate
castvision_install dev
castvision_install clients
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec python -m pytest -n "${WORKERS:-auto}" -m slow tests/clients "$@"
