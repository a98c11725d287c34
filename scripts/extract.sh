#!/bin/sh
# Extracts the features of a data folder, one process per GPU:
# sh scripts/extract.sh --data DATA --text ENCODER --image ENCODER [...]
# Resumes where it stopped, with any number of processes; --help shows the other arguments. Several processes write
# separate files, clean_feat-00-of-04.h5 and so on, which together make one store.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
. scripts/launch.sh
exec "$PYTHON" -m lr2ppo extract "$@"
