"""Export a run as a folder that needs only its encoders: weights, reward model, README."""

import argparse
import shlex
from pathlib import Path

from lr2ppo.commands.arguments import add_logs_argument, require_runs
from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.terminal import say

EXAMPLE = "lr2ppo export ppo/quickstart exported/mini --onnx"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run: NAME, STAGE/NAME or a path")
    parser.add_argument("out", type=Path, metavar="OUT", help="new folder to write")
    parser.add_argument("--onnx", action="store_true", help="also write ranker.onnx, and check its scores")
    add_logs_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    require_runs([arguments.run], arguments.logs, exported=True)
    with ended_by_interrupt():
        from lr2ppo.inference.export import export
        from lr2ppo.inference.trained import open_trained

    trained = open_trained(arguments.run, arguments.logs)
    report = export(trained, arguments.out, arguments.onnx)
    size = sum(path.stat().st_size for path in arguments.out.rglob("*") if path.is_file()) / 2**20
    command = shlex.join(["lr2ppo", "rank", str(arguments.out)])
    say(f"{arguments.out}: {trained.use.name}, {size:.1f} MiB; rank with: {command} ...")
    if report is not None:
        say(f"{arguments.out / 'ranker.onnx'}: {report}")
