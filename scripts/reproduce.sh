#!/bin/sh
# All three stages and their evaluation, then a table beside the published figures; stopped runs resume.
# sh scripts/reproduce.sh [NAME] [key=value ...]   (NAME: of the runs, default reproduce; PRESET: default lrmovienet)
# A setting applies to every stage that has its key; STAGE:key=value, such as ppo:train.epochs=1, only to that stage.
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
. scripts/launch.sh
name=reproduce
case "${1:-}" in
    '' | *=*) ;;
    -*)
        usage "scripts/reproduce.sh [NAME] [key=value ...]" "sh scripts/reproduce.sh mine ppo:train.epochs=10"
        ;;
    *)
        name=$1
        shift
        ;;
esac
logs=logs
for setting in "$@"; do
    case $setting in logs=*) logs=${setting#logs=} ;; esac
done

"$PYTHON" -m lr2ppo pipeline "$name" --preset "configs/$PRESET" "$@"
echo
"$PYTHON" -m lr2ppo compare-published "$name" --logs "$logs"
