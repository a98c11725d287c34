#!/bin/sh
# Stage 2, the reward model: sh reward_pair_dataloader.sh NAME [ranker=RUN] [--fresh] [--max-restarts N] [key=value ...]
# If the preset's stage 3 starts from a fine-tuned ranker, stage 2a trains that first, unless a finished one of this NAME
# has these settings. A setting then applies to both stages that have its key, and finetune:key=value or
# reward:key=value only to one. With ranker=finetune/RUN or ranker=none there is no stage 2a.
set -eu
CDPATH='' cd -- "$(dirname "$0")"
. scripts/launch.sh
require_name "reward_pair_dataloader.sh NAME [ranker=RUN] [--fresh] [--max-restarts N] [key=value ...]" \
    "PRESET=mini sh reward_pair_dataloader.sh demo seed=1" "$@"
name=$1
shift
if fine_tunes "$@"; then
    exec "$PYTHON" -m lr2ppo pipeline "$name" --preset "configs/$PRESET" --stages finetune,reward --no-evaluation "$@"
fi
exec_stage reward "name=$name" "$@"
