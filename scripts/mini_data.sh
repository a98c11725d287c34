#!/bin/sh
# The mini benchmark's data for one seed: clips, tiny encoders and features. Existing ones are reused.
# sh scripts/mini_data.sh SEED DATA [WORLD]   (WORLD: uniform, the default, or varied)
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
. scripts/launch.sh
if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    usage "scripts/mini_data.sh SEED DATA [uniform|varied]" "sh scripts/mini_data.sh 2 data/varied-2 varied"
fi
seed=$1
data=$2
world=${3:-uniform}
encoders=pretrained_models/$(basename "$data")

step() { printf '\n== %s\n' "$1"; }

step "clips: $data"
if [ -d "$data" ]; then
    echo "already exists"
else
    "$PYTHON" -m lr2ppo mini "$data" --seed "$seed" --world "$world"
fi

step "encoders: $encoders"
# The last part of another DATA may be the same, and DATA may be made again with another seed.
"$PYTHON" -m lr2ppo pretrain --data "$data" --out "$encoders" --seed "$seed" --reuse

step "features: $data/clean_feat.h5"
# One process, because the preset reads one file.
NPROC=1 "$PYTHON" -m lr2ppo extract --data "$data" \
    --text "$encoders/roberta" --image "$encoders/vit" --frame-tokens patches
