#!/bin/sh
# Tests every guarantee of docs/reliability.md on a tiny world, in a temporary folder: runs killed at random moments,
# full and read-only disks, bad input. Prints a table; exits with 1 if anything was lost. 15 to 30 minutes on 2 cores.
# sh scripts/faults.sh [--kills N] [--seed N] [--only GROUP]
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
sh scripts/setup.sh
. scripts/launch.sh

# Mount small disks that only this command sees, if the system permits it.
if unshare -rm true 2>/dev/null; then
    exec unshare -rm "$PYTHON" -m tests.reliability.faults "$@"
fi
exec "$PYTHON" -m tests.reliability.faults "$@"
