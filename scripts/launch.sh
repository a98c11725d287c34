# shellcheck shell=sh
# Sourced by the stage scripts: starts a stage under torchrun, as many processes as there are GPUs (1 on a CPU).
# Environment: PRESET, the folder under configs/ (default mini); NPROC, the number of processes; PYTHON.

: "${PRESET:=mini}"
if [ -z "${PYTHON:-}" ]; then
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; else PYTHON=python3; fi
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
                echo "usage: [PRESET=mini] [NPROC=N] sh $script NAME [--fresh] [key=value ...]"
                echo "example: PRESET=mini sh $script demo seed=1"
            } >&2
            exit 2
            ;;
    esac
}
