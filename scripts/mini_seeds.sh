#!/bin/sh
# The mini benchmark over several seeds, each with its own world, clips, encoders and runs, then one table of all.
# Finished runs are kept, stopped ones resume.
# sh scripts/mini_seeds.sh [SEED ...]   (default 1 2 3)
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
sh scripts/setup.sh
PRESET=mini
. scripts/launch.sh
[ $# -gt 0 ] || set -- 1 2 3

for seed in "$@"; do
    printf '\n==== seed %s\n' "$seed"
    sh scripts/mini_data.sh "$seed" "data/mini-$seed"
done
seeds=$(printf '%s\n' "$@" | paste -sd, -)
printf '\n==== all stages, seeds %s\n' "$seeds"
"$PYTHON" -m lr2ppo pipeline seed --preset configs/mini --seeds "$seeds" 'data.root=data/mini-{seed}'

printf '\n== all seeds together\n'
evaluate --table "$(runs pointwise seed "$@")" "$(runs ppo seed "$@")" "$(runs reward seed "$@")"
