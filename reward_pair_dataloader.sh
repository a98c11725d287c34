#!/bin/sh
# Stage 2, the reward model: sh reward_pair_dataloader.sh NAME [ranker=RUN] [--fresh] [--max-restarts N] [key=value ...]
# If the preset's reward model starts from a fine-tuned ranker, stage 2a trains that first, from stage 1's ranker=RUN, if
# there is no finished one of this NAME and settings. A setting then applies to both stages that have its key, and
# finetune:key=value or reward:key=value only to one. With ranker=finetune/RUN or ranker=none there is no stage 2a.
set -eu
CDPATH='' cd -- "$(dirname "$0")"
. scripts/launch.sh
require_name "reward_pair_dataloader.sh NAME [ranker=RUN] [--fresh] [--max-restarts N] [key=value ...]" \
    "PRESET=mini sh reward_pair_dataloader.sh demo seed=1" "$@"
name=$1
shift
if ! starts_from reward finetune "$@"; then
    exec_stage reward "name=$name" "$@"
fi
# The run that is given is stage 1's.
for argument in "$@"; do
    shift
    case $argument in ranker=*) argument=finetune:$argument ;; esac
    set -- "$@" "$argument"
done
exec "$PYTHON" -m lr2ppo pipeline "$name" --preset "configs/$PRESET" --stages finetune,reward --no-evaluation "$@"
