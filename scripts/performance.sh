#!/bin/sh
# The measurements of docs/performance.md, one JSON line each: the published sizes on random features.
# sh scripts/performance.sh [--plain | --gpu] [key=value ...]   example: sh scripts/performance.sh compute.precision=bf16
# --plain, as first argument: the published way, at the published batch sizes; about 10 minutes.
# --gpu, as first argument: real runs on a GPU; about 6 minutes.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
. scripts/launch.sh

# 80 pairs of a clip a step, 60 steps an update: see docs/performance.md, Larger steps.
LARGE_STEPS="train.clips_per_batch=1 train.pairs_per_clip=80 train.visits_per_epoch=1 train.batches_per_rollout=60"

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

# shellcheck disable=SC2086  # one word a setting
on_gpu() {
    measure run pointwise --steps 400 "$@"
    measure run pointwise --steps 200 data.keep=memory "$@"
    measure run pointwise --steps 100 data.keep=disk "$@"
    measure run reward --steps 300 "$@"
    measure run ppo --steps 5 "$@"
    measure run ppo --steps 8 $LARGE_STEPS "$@"
    measure run reward --steps 300 --preset lrmovienet_pooled --tokens 60 train.clips_per_batch=8 "$@"
    measure run ppo --steps 12 --preset lrmovienet_pooled --tokens 60 $LARGE_STEPS "$@"
}

measure() {
    "$PYTHON" -m lr2ppo benchmark "$@"
}

case ${1:-} in
--plain)
    shift
    plain "$@"
    ;;
--gpu)
    shift
    on_gpu "$@"
    ;;
*) ours "$@" ;;
esac
