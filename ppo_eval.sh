#!/bin/sh
# Evaluation of any stage's run: sh ppo_eval.sh RUN [split=val|test] [key=value ...]
# Evaluated runs compared: sh ppo_eval.sh --table RUN RUN ... [--csv FILE] [split=val|test]; RUN,RUN,... is one row
set -eu
CDPATH='' cd -- "$(dirname "$0")"
. scripts/launch.sh
if [ "${1:-}" = --table ]; then
    shift
    EXEC="exec"
    evaluate --table "$@"
fi
require_name "ppo_eval.sh RUN [split=val|test] [key=value ...]" "PRESET=mini sh ppo_eval.sh ppo/demo split=val" "$@"
name=$1
shift
evaluate "name=$name" "$@"
