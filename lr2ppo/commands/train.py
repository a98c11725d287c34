"""Train a stage from its YAML file, with one process per GPU (one on a CPU) or NPROC processes.

A stopped run resumes when the same command is run again.
"""

import argparse
from importlib import import_module

from lr2ppo.commands.arguments import add_config_arguments, add_training_arguments, read_config
from lr2ppo.config.schema import TrainingConfig
from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.runs.stages import STAGES

EXAMPLE = "lr2ppo train pointwise --config configs/mini/pointwise.yaml name=demo train.epochs=3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", choices=tuple(STAGES), metavar="STAGE", help=", ".join(STAGES))
    add_config_arguments(parser)
    add_training_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    config = read_config(arguments, arguments.stage)
    if config is None:
        return
    with ended_by_interrupt():
        from lr2ppo.distributed.launch import run_in_processes
    run_in_processes(lambda: train(config, arguments.fresh), arguments.command, arguments.max_restarts)


def train(config: TrainingConfig, fresh: bool) -> None:
    """Train the config's stage in this process, one of those of the run."""
    with ended_by_interrupt():
        import torch

        from lr2ppo.distributed.processes import join_processes

        stage = import_module(STAGES[config.stage].module)
    with join_processes(config.device) as processes:
        torch.manual_seed(config.seed)
        stage.train(config, processes, fresh)
