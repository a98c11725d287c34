#!/bin/sh
# Stage 2, the reward model: sh reward_pair_dataloader.sh NAME [ranker=RUN] [--fresh] [--max-restarts N] [key=value ...]
set -eu
CDPATH='' cd -- "$(dirname "$0")"
. scripts/launch.sh
require_name "reward_pair_dataloader.sh NAME [ranker=RUN] [--fresh] [--max-restarts N] [key=value ...]" \
    "PRESET=mini sh reward_pair_dataloader.sh demo seed=1" "$@"
name=$1
shift
exec_stage reward "name=$name" "$@"
