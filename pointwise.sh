#!/bin/sh
# Stage 1, the pointwise ranker: sh pointwise.sh NAME [--fresh] [--max-restarts N] [key=value ...]
set -eu
cd "$(dirname "$0")"
. scripts/launch.sh
named pointwise.sh "$@"
name=$1
shift
become pointwise "name=$name" "$@"
