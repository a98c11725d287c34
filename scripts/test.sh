#!/bin/sh
# The tests, after installing what they need: sh scripts/test.sh [pytest arguments]
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh dev
# As the stage scripts have it (scripts/launch.sh): the tests stay fast on a busy machine.
export GOMP_SPINCOUNT="${GOMP_SPINCOUNT:-1000}"
exec .venv/bin/python -m pytest "$@"
