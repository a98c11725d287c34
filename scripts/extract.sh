#!/bin/sh
# Features of a data folder, by one process a GPU: sh scripts/extract.sh --data DATA --text ENCODER --image ENCODER [...]
# Goes on where it stopped, with any number of processes; --help shows the other arguments. Each of several processes
# writes a file of its own, clean_feat-00-of-04.h5 and so on, which together make one store.
set -eu
cd "$(dirname "$0")/.."
. scripts/launch.sh
exec "$PYTHON" -m lr2ppo extract "$@"
