#!/bin/sh
# Feeds broken files and requests to everything that reads them, others in each run: sh scripts/fuzz.sh --minutes N
# Failures of earlier runs, kept in .hypothesis, are tried first. Prints a table; exits with 1 if one of them fails, with
# the smallest failing input in a folder. --only TARGET may be given several times; Ctrl-C ends it with its table.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
sh scripts/setup.sh dev
. scripts/launch.sh
exec "$PYTHON" -m tests.reliability.fuzz "$@"
