# shellcheck shell=sh
# Sourced by the scripts: trains a stage with one process per GPU (1 on a CPU).
# Environment: PRESET, the folder under configs/ (default lrmovienet); NPROC, the number of processes; PYTHON.
# On several machines that share the repository's folder, start the same script on each of them with
#   NNODES, how many machines there are (default 1); NODE_RANK, this one's number, from 0;
#   MASTER_ADDR, the name or IPv4 address of machine 0; MASTER_PORT, a free port there.
# Example: NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 MASTER_PORT=29500 sh ppo.sh NAME. NPROC is per machine.
# Under Slurm, scripts/slurm/train.sbatch does that.

: "${PRESET:=lrmovienet}"
EXEC=""
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
if ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))'; then
    echo "error: $PYTHON has no torch; install the packages into .venv first: sh scripts/setup.sh" >&2
    exit 2
fi

# launch STAGE ARGUMENT...: trains a stage with the preset's config
launch() {
    stage=$1
    shift
    $EXEC "$PYTHON" -m lr2ppo train "$stage" --config "configs/$PRESET/$stage.yaml" "$@"
}

# evaluate ARGUMENT...: evaluates a run, or prints a table of runs, with the preset's config
evaluate() {
    $EXEC "$PYTHON" -m lr2ppo evaluate --config "configs/$PRESET/evaluate.yaml" "$@"
}

# exec_stage STAGE ARGUMENT...: launch that replaces the script, so that signals to the script reach the stage
exec_stage() {
    EXEC="exec"
    launch "$@"
}

# fine_tunes ARGUMENT...: whether the preset's stage 3 starts from a fine-tuned ranker, and the arguments name no other
# start of stage 2 than stage 1
fine_tunes() {
    grep -q '^ranker: *finetune/' "configs/$PRESET/ppo.yaml" || return 1
    for argument in "$@"; do
        case $argument in ranker=finetune/* | ranker=none | --print-config) return 1 ;; esac
    done
}

# runs STAGE NAME SEED...: one row of a table of several seeds, STAGE/NAME-SEED,STAGE/NAME-SEED,...
runs() {
    stage=$1
    name=$2
    shift 2
    printf "$stage/$name-%s\n" "$@" | paste -sd, -
}

# usage COMMAND EXAMPLE: prints how to call a script, and exits
usage() {
    {
        echo "usage: [PRESET=lrmovienet] [NPROC=N] sh $1"
        echo "example: $2"
    } >&2
    exit 2
}

# require_name COMMAND EXAMPLE ARGUMENT...: exits with the usage unless the first argument is a run's name
require_name() {
    case "${3:-}" in '' | -* | *=*) usage "$1" "$2" ;; esac
}
