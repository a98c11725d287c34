#!/bin/sh
# Direct fine-tuning of stage 1: sh finetune.sh NAME [ranker=RUN] [--fresh] [--max-restarts N] [key=value ...]
set -eu
CDPATH='' cd -- "$(dirname "$0")"
. scripts/launch.sh
require_name "finetune.sh NAME [ranker=RUN] [--fresh] [--max-restarts N] [key=value ...]" \
    "PRESET=mini sh finetune.sh demo seed=1" "$@"
name=$1
shift
exec_stage finetune "name=$name" "$@"
