#!/bin/sh
# The measurements of docs/performance.md, one JSON line each: the published sizes on random features.
# sh scripts/performance.sh [--plain] [key=value ...]   example: sh scripts/performance.sh compute.precision=bf16
# --plain, as first argument: the published way, at the published batch sizes; about 10 minutes.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
. scripts/launch.sh

plain() {
    measure pointwise --plain "$@"
    measure reward --plain --steps 1 train.clips_per_batch=16 train.pairs_per_clip=1 "$@"
    measure ppo --plain --steps 1 train.clips_per_batch=24 train.pairs_per_clip=1 "$@"
}

ours() {
    measure pointwise --steps 6 "$@"
    measure reward --steps 6 "$@"
    measure ppo --steps 4 "$@"
    measure ppo --steps 4 train.clips_per_batch=1 train.pairs_per_clip=80 "$@"
    measure ppo --steps 4 train.clips_per_batch=2 train.pairs_per_clip=80 "$@"
    measure ppo --steps 4 train.clips_per_batch=3 train.pairs_per_clip=80 "$@"
    measure reward --steps 6 --preset lrmovienet_pooled --tokens 60 train.clips_per_batch=8 "$@"
    measure ppo --steps 6 --preset lrmovienet_pooled --tokens 60 train.clips_per_batch=1 train.pairs_per_clip=80 "$@"
}

measure() {
    "$PYTHON" -m lr2ppo benchmark "$@"
}

if [ "${1:-}" = --plain ]; then
    shift
    plain "$@"
else
    ours "$@"
fi
