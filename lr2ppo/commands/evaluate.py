"""Evaluate a run on a split, or compare evaluated runs (--table).

An evaluation writes results.json, cases.json and report.html into the run's folder.
"""

import argparse
from pathlib import Path

from lr2ppo.commands.arguments import add_config_arguments, read_config, require_rows, require_runs
from lr2ppo.config.schema import EvaluateConfig
from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.errors import UserError
from lr2ppo.files import check_output

EXAMPLE = "lr2ppo evaluate --config configs/mini/evaluate.yaml name=ppo/demo split=test"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--table", nargs="+", metavar="RUN", help="compare evaluated runs; A,B is one row, such as a run per seed"
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="with --table: write all values, of every run too")


def run(arguments: argparse.Namespace) -> None:
    from lr2ppo.runs.lookup import is_run

    table = arguments.table or []
    # Overrides may follow the runs: an item with an equals sign is an override, unless it is the path of a run.
    overrides = [item for item in table if "=" in item and not is_run(Path(item))]
    arguments.overrides = [*arguments.overrides, *overrides]
    runs = [item for item in table if item not in overrides]
    config = read_config(arguments, "evaluate")
    if config is None:
        return
    if arguments.table and not runs:
        raise UserError("--table: found no run, wanted evaluated runs, such as --table pointwise/demo ppo/demo")
    if not arguments.table and config.name is None:
        raise UserError("name: is missing; run sh ppo_eval.sh RUN, or give name=RUN")
    if arguments.csv is not None:
        if not runs:
            raise UserError("--csv: is written of a table; add --table RUN RUN ...")
        check_output(arguments.csv)
    if runs:
        require_rows(runs, config.logs)
        show(runs, config, arguments.csv)
        return
    require_runs([config.name], config.logs)
    with ended_by_interrupt():
        from lr2ppo.distributed.launch import run_in_processes
    run_in_processes(lambda: evaluate(config), arguments.command)


def show(runs: list[str], config: EvaluateConfig, csv: Path | None) -> None:
    """Print the table of evaluated runs, and write it to `csv` if that is given."""
    with ended_by_interrupt():
        import torch

        from lr2ppo.stages import evaluate as stage

    torch.manual_seed(config.seed)
    stage.show_table(runs, config, csv)


def evaluate(config: EvaluateConfig) -> None:
    """Evaluate a run in this process, one of those that share the work."""
    with ended_by_interrupt():
        import torch

        from lr2ppo.stages import evaluate as stage

    torch.manual_seed(config.seed)
    stage.evaluate(config)
