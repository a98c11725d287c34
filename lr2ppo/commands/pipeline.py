"""Train and evaluate all stages, optionally over several seeds; finished runs are kept, stopped ones resume.

A setting applies to every stage that has its key; STAGE:key=value only to that stage. {seed} in a value stands for the
seed. Each run starts from those of its name, unless ranker= or reward= names another, or none.
"""

import argparse
from pathlib import Path

from lr2ppo.commands.arguments import add_overrides_argument, add_training_arguments, stage_names, whole_numbers
from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.errors import UserError

EXAMPLE = "lr2ppo pipeline study --preset configs/mini --seeds 1,2,3 ppo:train.epochs=3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="name of the runs; with --seeds NAME-SEED")
    parser.add_argument("--preset", type=Path, required=True, metavar="FOLDER", help="YAML files, such as configs/mini")
    parser.add_argument("--seeds", type=whole_numbers, default=[], metavar="N,N,...", help="one run per seed")
    parser.add_argument(
        "--stages",
        type=stage_names,
        default=[],
        metavar="STAGE,...",
        help="only these stages (default: all that the preset's stage 3 needs)",
    )
    parser.add_argument("--no-evaluation", action="store_true", help="train only")
    add_training_arguments(parser)
    add_overrides_argument(parser, "train.epochs=3 ppo:train.passes=1")


def run(arguments: argparse.Namespace) -> None:
    if "=" in arguments.name:
        raise UserError(f"NAME: found {arguments.name!r}, wanted the name of the runs before the settings")
    with ended_by_interrupt():
        from lr2ppo.stages.pipeline import run_pipeline

    options = ["--fresh"] * arguments.fresh
    if arguments.max_restarts:
        options.append(f"--max-restarts={arguments.max_restarts}")
    run_pipeline(
        arguments.name,
        arguments.preset,
        arguments.overrides,
        arguments.seeds,
        arguments.stages,
        options,
        evaluates=not arguments.no_evaluation,
    )
