"""A stage's command line: `--config FILE [key=value ...]`, and what happens before its training starts."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from lr2ppo.config.load import dump_config, load_config
from lr2ppo.distributed.processes import Processes, join_processes
from lr2ppo.errors import UserError, reports_user_errors


def stage_parser(stage: str, example: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m lr2ppo.stages.{stage}", epilog=f"example: {example}", description=f"The stage {stage}."
    )
    parser.add_argument("--config", type=Path, help="the stage's YAML file, such as configs/mini/" + stage + ".yaml")
    parser.add_argument("--print-config", action="store_true", help="show the resolved config and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides, such as seed=1 train.epochs=3")
    return parser


def read_stage_config(arguments: argparse.Namespace, stage: str) -> Any:
    """The stage's config, or None where it was only to be shown."""
    if arguments.config is None:
        raise UserError(f"--config: is missing, such as --config configs/mini/{stage}.yaml")
    config = load_config(arguments.config, stage, arguments.overrides)
    if arguments.print_config:
        if int(os.environ.get("RANK", "0")) == 0:
            print(dump_config(config), end="")
        return None
    return config


@reports_user_errors
def run_stage(stage: str, train: Callable[[Any, Processes, bool], None]) -> None:
    """The whole command of a training stage; `train(config, processes, fresh)` does its work."""
    parser = stage_parser(stage, f"python -m lr2ppo.stages.{stage} --config configs/mini/{stage}.yaml name=demo")
    parser.add_argument("--fresh", action="store_true", help="remove an earlier run of this name and start anew")
    arguments = parser.parse_intermixed_args()
    config = read_stage_config(arguments, stage)
    if config is not None:
        with join_processes(config.device) as processes:
            torch.manual_seed(config.seed)
            train(config, processes, arguments.fresh)
