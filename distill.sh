#!/bin/sh
# Distillation of the reward model: sh distill.sh NAME [ranker=RUN] [reward=RUN] [--fresh] [--max-restarts N] [key=value ...]
set -eu
CDPATH='' cd -- "$(dirname "$0")"
. scripts/launch.sh
require_name "distill.sh NAME [ranker=RUN] [reward=RUN] [--fresh] [--max-restarts N] [key=value ...]" \
    "PRESET=mini sh distill.sh demo seed=1" "$@"
name=$1
shift
exec_stage distill "name=$name" "$@"
