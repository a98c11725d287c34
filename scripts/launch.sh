# shellcheck shell=sh
# Sourced by the scripts: a stage is trained by as many processes as there are GPUs (1 on a CPU).
# Environment: PRESET, the folder under configs/ (default lrmovienet); NPROC, the number of processes; PYTHON.
# On several machines, which share the repository's folder, the same script is started on each of them with
#   NNODES, how many machines there are (default 1); NODE_RANK, this one's number, from 0;
#   MASTER_ADDR, the name or IPv4 address by which all reach machine 0; MASTER_PORT, a port that is free there.
# As in: NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 MASTER_PORT=29500 sh ppo.sh NAME. NPROC counts one machine's processes.
# Under Slurm, scripts/slurm/train.sbatch does that.

: "${PRESET:=lrmovienet}"
BY=""
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
if ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))'; then
    echo "error: $PYTHON has no torch; install what is needed into .venv first: sh scripts/setup.sh" >&2
    exit 2
fi

# launch STAGE ARGUMENT...: trains a stage as the preset says
launch() {
    stage=$1
    shift
    $BY "$PYTHON" -m lr2ppo train "$stage" --config "configs/$PRESET/$stage.yaml" "$@"
}

# evaluate ARGUMENT...: evaluates a run, or shows a table of runs, as the preset says
evaluate() {
    $BY "$PYTHON" -m lr2ppo evaluate --config "configs/$PRESET/evaluate.yaml" "$@"
}

# become STAGE ARGUMENT...: launch as the script's last act, so that signals to the script reach the stage
become() {
    BY="exec"
    launch "$@"
}

# runs STAGE NAME SEED...: one row of a table of several seeds, STAGE/NAME-SEED,STAGE/NAME-SEED,...
runs() {
    stage=$1
    name=$2
    shift 2
    printf "$stage/$name-%s\n" "$@" | paste -sd, -
}

# usage COMMAND EXAMPLE: tells how a script is called, and ends
usage() {
    {
        echo "usage: [PRESET=lrmovienet] [NPROC=N] sh $1"
        echo "example: $2"
    } >&2
    exit 2
}

# named COMMAND EXAMPLE ARGUMENT...: ends with the usage unless the first argument is a run's name
named() {
    case "${3:-}" in '' | -* | *=*) usage "$1" "$2" ;; esac
}
