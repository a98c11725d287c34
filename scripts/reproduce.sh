#!/bin/sh
# All three stages and their evaluation, then a table beside the published figures; goes on where it stopped.
# sh scripts/reproduce.sh [NAME] [key=value ...]   (NAME: of the runs, default reproduce; PRESET: default lrmovienet)
# Overrides go to every training stage, but model.* to stages 1 and 2 alone, whose models give stage 3 its shape, and
# STAGE:key=value, such as ppo:train.epochs=1, to that stage alone.
set -eu
cd "$(dirname "$0")/.."
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
for override in "$@"; do
    case $override in logs=*) logs=${override#logs=} ;; esac
done

# train STAGE key=value ...: nothing where the run is finished; one that was stopped goes on from its checkpoint
train() {
    stage=$1
    shift
    printf '\n== %s\n' "$stage"
    if [ -f "$logs/$stage/$name/finished.json" ]; then
        echo "finished already"
        return
    fi
    for override in "$@"; do
        shift
        case $override in
            "$stage":*) set -- "$@" "${override#*:}" ;;
            pointwise:* | reward:* | ppo:*) ;;
            model.*) [ "$stage" = ppo ] || set -- "$@" "$override" ;;
            *) set -- "$@" "$override" ;;
        esac
    done
    launch "$stage" "name=$name" "$@"
}

train pointwise "$@"
train reward "ranker=$name" "$@"
train ppo "ranker=$name" "reward=$name" "$@"

for stage in pointwise reward ppo; do
    printf '\n== evaluation of %s\n' "$stage"
    if [ -f "$logs/$stage/$name/results.json" ]; then
        echo "evaluated already"
    else
        evaluate "name=$stage/$name" "logs=$logs"
    fi
done
echo
"$PYTHON" -m lr2ppo compare-published "$name" --logs "$logs"
