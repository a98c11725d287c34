#!/bin/sh
# Does sharing a clip's encodings cost quality? Stages 2 and 3 of mini over several seeds, trained twice from the same
# stage 1 runs: as in the preset (a clip's labels encoded once for many of its pairs) and the plain way, each pair a
# separate item; then one table with paired differences on the test clips, the same for both.
# sh scripts/mini_plain.sh [SEED ...]   (default 1 2 3; existing runs of scripts/mini_seeds.sh are reused)
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
sh scripts/setup.sh
PRESET=mini
. scripts/launch.sh
[ $# -gt 0 ] || set -- 1 2 3

for seed in "$@"; do
    data=data/mini-$seed
    [ -f "logs/ppo/seed-$seed/results.json" ] || sh scripts/mini.sh "seed-$seed" "$seed" "$data"
    # The same pairs per batch and epoch: 16 clips x 20 pairs in stage 2, 16 x 32 in stage 3.
    printf '\n==== seed %s, the plain way\n' "$seed"
    launch reward --fresh "name=plain-$seed" "seed=$seed" "data.root=$data" "ranker=seed-$seed" \
        train.clips_per_batch=320 train.pairs_per_clip=1
    launch ppo --fresh "name=plain-$seed" "seed=$seed" "data.root=$data" "ranker=seed-$seed" "reward=plain-$seed" \
        train.clips_per_batch=512 train.pairs_per_clip=1 train.visits_per_epoch=32
    for stage in reward ppo; do
        evaluate "name=$stage/plain-$seed" >"logs/$stage/plain-$seed/evaluation.txt"
    done
done

for stage in reward ppo; do
    printf '\n== %s, all seeds together: the plain way, then ours\n' "$stage"
    evaluate --table "$(runs "$stage" plain "$@")" "$(runs "$stage" seed "$@")"
done
