#!/bin/sh
# Creates .venv in the repository, or reuses it, and installs the packages: sh scripts/setup.sh [--lowest] [dev]
# .venv gets the versions of constraints.txt; with --lowest, .venv-lowest gets the lowest versions that are supported.
# Environment: BASE_PYTHON, the interpreter that creates it (default python3); CONSTRAINTS, the file of versions.
# For another build of torch set PIP_INDEX_URL or install torch first; CONSTRAINTS=/dev/null keeps any version of it.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
venv=.venv
constraints=${CONSTRAINTS:-constraints.txt}
if [ "${1:-}" = --lowest ]; then
    shift
    venv=.venv-lowest
    constraints=$venv/lowest.txt
fi
extras=${1:-}

if [ ! -x "$venv/bin/python" ]; then
    echo "creating $venv"
    "${BASE_PYTHON:-python3}" -m venv "$venv"
fi
if ! "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $venv has $("$venv/bin/python" --version), wanted Python 3.11 or newer; remove $venv and set BASE_PYTHON" >&2
    exit 2
fi
if [ "$venv" = .venv-lowest ]; then
    "$venv/bin/python" scripts/lowest.py >"$constraints"
fi

# Skip the installation if nothing changed since the last one.
wanted=$(cat requirements.txt pyproject.toml "$constraints" | cksum)
done_file=$venv/.lr2ppo-installed${extras:+-$extras}
if [ "$(cat "$done_file" 2>/dev/null)" != "$wanted" ]; then
    echo "installing packages into $venv (several GB on first use)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$constraints" -e ".${extras:+[$extras]}"
    echo "$wanted" >"$done_file"
fi
