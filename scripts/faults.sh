#!/bin/sh
# Tries every promise of docs/reliability.md on a tiny world, in a temporary folder: runs killed at random moments, full
# and read-only disks, bad input. Prints a table; exits with 1 where something was lost. A quarter to half an hour on 2 cores.
# sh scripts/faults.sh [--kills N] [--seed N] [--only GROUP]
set -eu
cd "$(dirname "$0")/.."
sh scripts/setup.sh
. scripts/launch.sh

# Small disks are mounted where only this command sees them, if the system permits that.
if unshare -rm true 2>/dev/null; then
    exec unshare -rm "$PYTHON" -m tests.reliability.faults "$@"
fi
exec "$PYTHON" -m tests.reliability.faults "$@"
