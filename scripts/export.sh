#!/bin/sh
# Exports a run's model, with its reward model and a model card: sh scripts/export.sh RUN OUT [--onnx]
set -eu
CDPATH='' cd -- "$(dirname "$0")/.."
. scripts/launch.sh
exec "$PYTHON" -m lr2ppo export "$@"
