# Sourced by the other scripts: chooses a Python and installs castvision into it when something is missing.
# An active virtual or conda environment is used as it is; otherwise .venv is made beside this folder.
# PYTHON names the interpreter that makes .venv (default: the first of python3.13 … python3 that is new enough).

castvision_new_enough() {
    command -v "$1" >/dev/null 2>&1 && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

castvision_activate() {
    if [[ -n "${VIRTUAL_ENV:-}" || -n "${CONDA_PREFIX:-}" ]]; then
        castvision_new_enough python && return
        echo "The active environment has $(python --version 2>&1); castvision needs Python 3.11 or newer." >&2
        return 1
    fi
    if [[ ! -x .venv/bin/python ]]; then
        local candidate
        for candidate in "${PYTHON:-python3.13}" python3.12 python3.11 python3 python; do
            if castvision_new_enough "$candidate"; then
                "$candidate" -m venv .venv
                break
            fi
        done
        if [[ ! -x .venv/bin/python ]]; then
            echo "No Python 3.11 or newer found; install one or name it: PYTHON=/path/to/python3.12 bash $0" >&2
            return 1
        fi
    fi
    # shellcheck disable=SC1091
    source .venv/bin/activate
}

# castvision_install [EXTRA]: installs the checkout in editable form, with the extra, if a requirement is not met.
castvision_install() {
    local extra="${1:-}" missing
    missing="$(python tools/missing_requirements.py ${extra:+--extra "$extra"})" || return 1
    [[ -z "$missing" ]] && return
    echo "Installing castvision${extra:+[$extra]} into $(python -c 'import sys; print(sys.prefix)'); missing:" $missing
    python -m pip install --quiet --disable-pip-version-check --editable ".${extra:+[$extra]}"
}
