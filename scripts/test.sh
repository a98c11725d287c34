#!/bin/sh
# The tests, after installing what they need: sh scripts/test.sh [pytest arguments]
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh dev
# As the stage scripts have it (scripts/launch.sh): the tests stay fast on a busy machine.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-PASSIVE}"
exec .venv/bin/python -m pytest "$@"
