#!/bin/sh
# The tests, after installing what they need: sh scripts/test.sh [--lowest] [--fast] [pytest arguments]
# --lowest: in .venv-lowest, with the lowest supported version of every package.
# --fast: without tests that run scripts, open a browser or take more than a few seconds.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
venv=.venv
setup=""
if [ "${1:-}" = --lowest ]; then
    shift
    venv=.venv-lowest
    setup=--lowest
fi
if [ "${1:-}" = --fast ]; then
    shift
    set -- -m "not e2e and not browser and not slow" "$@"
fi
# shellcheck disable=SC2086 # No argument where there is none.
sh scripts/setup.sh $setup dev
# A process per core; the tests of a file share what they set up.
exec "$venv/bin/python" -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder "$@"
