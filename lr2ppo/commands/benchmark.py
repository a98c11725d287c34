"""Time a stage's training step: one JSON line of times, rates, matrix work and memory, on random features.

--plain computes the same step the published way: every slot of every pair is encoded separately, with its own copy of
the clip's frames. The ratio of two lines from one machine is the speed-up.
"""

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lr2ppo.commands.arguments import add_overrides_argument, whole_number
from lr2ppo.config.schema import ModelConfig
from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.errors import UserError
from lr2ppo.files import check_output
from lr2ppo.runs.stages import LR2PPO

if TYPE_CHECKING:
    from lr2ppo.benchmark.steps import TimedConfig

EXAMPLE = "lr2ppo benchmark reward && lr2ppo benchmark reward --plain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("stage", choices=tuple(LR2PPO), metavar="STAGE", help=", ".join(LR2PPO))
    parser.add_argument("--preset", default="lrmovienet", help="folder under configs/ (default lrmovienet)")
    parser.add_argument("--plain", action="store_true", help="the published way, each slot of each pair separately")
    parser.add_argument("--labels", type=int, default=20, help="labels per clip (default 20)")
    parser.add_argument("--tokens", type=int, help="text tokens per label (default: as the flatten head)")
    parser.add_argument("--model", action="append", default=[], metavar="key=value", help="overrides of model keys")
    parser.add_argument(
        "--processes", type=whole_number, default=1, metavar="N", help="processes that share the work (default 1)"
    )
    parser.add_argument("--steps", type=int, default=3, help="timed steps, of which the fastest counts (default 3)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a torch profiler trace of one step")
    add_overrides_argument(parser, "compute.precision=bf16")


def run(arguments: argparse.Namespace) -> None:
    from lr2ppo.config.load import load_config

    if arguments.steps < 1 or arguments.labels < 2 or arguments.processes < 1:
        raise UserError(
            f"found --steps {arguments.steps} --labels {arguments.labels} --processes {arguments.processes}, "
            "wanted at least 1, 2 and 1"
        )
    if arguments.profile is not None:
        check_output(arguments.profile)
    preset = Path("configs") / arguments.preset
    config = load_config(preset / f"{arguments.stage}.yaml", arguments.stage, arguments.overrides)
    trunk = load_config(preset / "pointwise.yaml", "pointwise", arguments.model).model
    if arguments.processes == 1:
        measure(arguments, config, trunk)
        return
    os.environ["NPROC"] = str(arguments.processes)
    with ended_by_interrupt():
        from lr2ppo.distributed.launch import run_in_processes
    run_in_processes(lambda: measure(arguments, config, trunk), arguments.command)


def measure(arguments: argparse.Namespace, config: "TimedConfig", trunk: ModelConfig) -> None:
    """Time the step in this process, one of those that share it; the main process prints the line."""
    with ended_by_interrupt():
        from lr2ppo.benchmark import measure as benchmark
        from lr2ppo.distributed.processes import join_processes

    with join_processes("auto") as processes:
        figures = benchmark.measure(
            config,
            trunk,
            processes,
            labels=arguments.labels,
            tokens=arguments.tokens,
            plain=arguments.plain,
            steps=arguments.steps,
            trace=arguments.profile,
        )
        if processes.is_main:
            print(json.dumps(figures))  # noqa: T201 (exact)
