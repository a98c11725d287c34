#!/bin/sh
# Everything on the mini benchmark for one seed: data, encoders, features, all stages and their evaluation.
# sh scripts/mini.sh NAME SEED DATA [key=value ...]   (overrides go to the training stages)
# Existing data and encoders are reused; runs called NAME are trained again.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
PRESET=mini
. scripts/launch.sh
if [ $# -lt 3 ]; then
    usage "scripts/mini.sh NAME SEED DATA [key=value ...]" "sh scripts/mini.sh second 2 data/mini-2 train.epochs=3"
fi
name=$1
seed=$2
data=$3
shift 3

step() { printf '\n== %s\n' "$1"; }

sh scripts/mini_data.sh "$seed" "$data"

step "stage 1, the pointwise ranker"
launch pointwise --fresh "name=$name" "seed=$seed" "data.root=$data" "$@"
step "stage 2a, direct fine-tuning"
launch finetune --fresh "name=$name" "seed=$seed" "data.root=$data" "ranker=$name" "$@"
step "stage 2, the reward model"
launch reward --fresh "name=$name" "seed=$seed" "data.root=$data" "ranker=$name" "$@"
step "stage 3, LR2PPO"
launch ppo --fresh "name=$name" "seed=$seed" "data.root=$data" "ranker=$name" "reward=$name" "$@"

for stage in pointwise finetune reward ppo; do
    evaluate "name=$stage/$name" >"logs/$stage/$name/evaluation.txt"
done
