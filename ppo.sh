#!/bin/sh
# Stage 3, LR2PPO: sh ppo.sh NAME [ranker=RUN] [reward=RUN] [--fresh] [--max-restarts N] [key=value ...]
set -eu
CDPATH='' cd -- "$(dirname "$0")"
. scripts/launch.sh
require_name "ppo.sh NAME [ranker=RUN] [reward=RUN] [--fresh] [--max-restarts N] [key=value ...]" \
    "PRESET=mini sh ppo.sh demo seed=1" "$@"
name=$1
shift
exec_stage ppo "name=$name" "$@"
