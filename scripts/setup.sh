#!/bin/sh
# Creates .venv in the repository, or reuses it, and installs the packages: sh scripts/setup.sh [dev]
# Environment: BASE_PYTHON, the interpreter that creates .venv (default python3).
set -eu
cd "$(dirname "$0")/.."
extras=${1:-}

if [ ! -x .venv/bin/python ]; then
    echo "creating .venv"
    "${BASE_PYTHON:-python3}" -m venv .venv
fi
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: .venv has $(.venv/bin/python --version), wanted Python 3.11 or newer; remove .venv and set BASE_PYTHON" >&2
    exit 2
fi

# Skip the installation if nothing changed since the last one.
wanted=$(cat requirements.txt pyproject.toml | cksum)
done_file=.venv/.lr2ppo-installed${extras:+-$extras}
if [ "$(cat "$done_file" 2>/dev/null)" != "$wanted" ]; then
    echo "installing packages into .venv (several GB on first use)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".${extras:+[$extras]}"
    echo "$wanted" >"$done_file"
fi
