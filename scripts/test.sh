#!/bin/sh
# The tests, after installing what they need: sh scripts/test.sh [pytest arguments]
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh dev
exec .venv/bin/python -m pytest "$@"
