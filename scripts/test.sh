#!/bin/sh
# The tests, after installing what they need: sh scripts/test.sh [--lowest] [pytest arguments]
# With --lowest in .venv-lowest, which has the lowest versions of all that requirements.txt and the extras name.
set -eu
cd "$(dirname "$0")/.."
if [ "${1:-}" = --lowest ]; then
    shift
    sh scripts/setup.sh --lowest dev
    exec .venv-lowest/bin/python -m pytest "$@"
fi
sh scripts/setup.sh dev
exec .venv/bin/python -m pytest "$@"
