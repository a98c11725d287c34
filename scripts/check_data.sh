#!/bin/sh
# Checks a folder in LRMovieNet's layout: sh scripts/check_data.sh PATH [--features FILE ...] [--frames-root DIR]
# Prints what it contains and what is wrong with it; exits 0 only if training can start.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
. scripts/launch.sh
exec "$PYTHON" -m lr2ppo check "$@"
