#!/bin/sh
# Is a folder in LRMovieNet's layout fit for training? sh scripts/check_data.sh PATH [--features FILE ...] [--frames-root DIR]
# Says what it holds and what is wrong with it; exits 0 only if training can start.
set -eu
cd "$(dirname "$0")/.."
. scripts/launch.sh
exec "$PYTHON" -m lr2ppo check "$@"
