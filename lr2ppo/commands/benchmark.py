"""Time a stage's training step: one JSON line of times, rates, matrix work and memory, on random features.

--plain computes the same step the published way: every slot of every pair is encoded separately, with its own copy of
the clip's frames. The ratio of two lines from one machine is the speed-up.

`lr2ppo benchmark run STAGE` trains the stage itself on generated clips: what its steps take beside the bare step, and
the seconds spent on reading, evaluating and writing.
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

RUN = "run"
STEPS, RUN_STEPS = 3, 100
EXAMPLE = "lr2ppo benchmark reward && lr2ppo benchmark reward --plain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stage", choices=(*LR2PPO, RUN), metavar="STAGE", help=f"{', '.join(LR2PPO)}; or run STAGE: a real run of it"
    )
    parser.add_argument("--preset", default="lrmovienet", help="folder under configs/ (default lrmovienet)")
    parser.add_argument("--plain", action="store_true", help="the published way, each slot of each pair separately")
    parser.add_argument("--labels", type=int, default=20, help="labels per clip (default 20)")
    parser.add_argument("--tokens", type=int, help="text tokens per label (default: as the flatten head)")
    parser.add_argument("--model", action="append", default=[], metavar="key=value", help="overrides of model keys")
    parser.add_argument(
        "--processes", type=whole_number, default=1, metavar="N", help="processes that share the work (default 1)"
    )
    parser.add_argument(
        "--steps", type=int, help="timed steps, of which the fastest counts (default 3); of a run: about so many (100)"
    )
    parser.add_argument("--clips", type=whole_number, default=240, help="clips of a run (default 240)")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write a torch profiler trace of one step")
    add_overrides_argument(parser, "compute.precision=bf16")


def run(arguments: argparse.Namespace) -> None:
    from lr2ppo.config.load import load_config

    arguments.real = arguments.stage == RUN
    if arguments.real:
        arguments.stage, *arguments.overrides = arguments.overrides or [""]
    if arguments.stage not in LR2PPO:
        raise UserError(f"{RUN}: found {arguments.stage!r}, wanted a stage after it: one of {', '.join(LR2PPO)}")
    if arguments.steps is None:
        arguments.steps = RUN_STEPS if arguments.real else STEPS
    if arguments.real and (arguments.plain or arguments.profile):
        raise UserError("--plain, --profile: found one with run STAGE, wanted neither; they are of a bare step")
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
        from lr2ppo.benchmark.measure import measure as measure_step
        from lr2ppo.benchmark.real_run import measure_run
        from lr2ppo.distributed.processes import join_processes

    with join_processes("auto") as processes:
        sizes = {"labels": arguments.labels, "tokens": arguments.tokens, "steps": arguments.steps}
        if arguments.real:
            figures = measure_run(config, trunk, processes, clips=arguments.clips, **sizes)
        else:
            figures = measure_step(config, trunk, processes, plain=arguments.plain, trace=arguments.profile, **sizes)
        if processes.is_main:
            print(json.dumps(figures))  # noqa: T201 (exact)
