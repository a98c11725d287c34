# shellcheck shell=sh
# Sourced by the stage scripts: starts a stage under torchrun, as many processes as there are GPUs (1 on a CPU).
# Environment: PRESET, the folder under configs/ (default lrmovienet); NPROC, the number of processes; PYTHON.

: "${PRESET:=lrmovienet}"
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
fi
if ! "$PYTHON" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))'; then
    echo "error: $PYTHON has no torch; install what is needed into .venv first: sh scripts/setup.sh" >&2
    exit 2
fi

# launch STAGE ARGUMENT...
launch() {
    stage=$1
    shift
    "$PYTHON" -m lr2ppo.torchrun -m "lr2ppo.stages.$stage" --config "configs/$PRESET/$stage.yaml" "$@"
}

# named SCRIPT ARGUMENT...: ends with the usage unless the first argument is a run's name
named() {
    script=$1
    shift
    case "${1:-}" in
        '' | -* | *=*)
            {
                echo "usage: [PRESET=lrmovienet] [NPROC=N] sh $script NAME [--fresh] [key=value ...]"
                echo "example: PRESET=mini sh $script demo seed=1"
            } >&2
            exit 2
            ;;
    esac
}
