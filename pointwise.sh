#!/bin/sh
# Stage 1, the pointwise ranker: sh pointwise.sh NAME [--fresh] [--max-restarts N] [key=value ...]
set -eu
CDPATH='' cd -- "$(dirname "$0")"
. scripts/launch.sh
require_name "pointwise.sh NAME [--fresh] [--max-restarts N] [key=value ...]" \
    "PRESET=mini sh pointwise.sh demo seed=1" "$@"
name=$1
shift
exec_stage pointwise "name=$name" "$@"
