"""Show the runs of the three stages beside the published figures of LRMovieNet, stage by stage."""

import argparse

from lr2ppo.commands.arguments import add_logs_argument
from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.terminal import say

EXAMPLE = "lr2ppo compare-published reproduce (after sh scripts/reproduce.sh)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="name of the runs logs/pointwise/NAME, logs/reward/NAME and logs/ppo/NAME"
    )
    add_logs_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    from lr2ppo.runs.lookup import find_run
    from lr2ppo.runs.stages import LR2PPO

    runs = {stage: find_run(f"{stage}/{arguments.name}", (stage,), arguments.logs) for stage in LR2PPO}
    with ended_by_interrupt():
        from lr2ppo.evaluation.published import compare_runs

    table = compare_runs(runs)
    say("Ours beside the published figures of LRMovieNet. Validation: the evaluation that selected each run's weights;")
    say("test: with 95 % bootstrap intervals over clips.\n")
    say(table)
