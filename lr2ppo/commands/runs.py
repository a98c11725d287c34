"""List all runs: progress, best validation metric and state."""

import argparse
import json
from dataclasses import asdict

from lr2ppo.commands.arguments import add_logs_argument
from lr2ppo.errors import UserError
from lr2ppo.terminal import say

EXAMPLE = "lr2ppo runs --watch 5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_logs_argument(parser)
    parser.add_argument(
        "--watch", nargs="?", type=float, const=2.0, metavar="SECONDS", help="refresh every SECONDS (default 2)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON list, times in seconds since 1970")


def run(arguments: argparse.Namespace) -> None:
    if not arguments.logs.is_dir():
        raise UserError(f"--logs: found no folder {arguments.logs}; give the folder of the runs")
    if arguments.watch is not None and (arguments.json or not arguments.watch > 0):
        raise UserError("--watch: wanted more than 0 seconds, and not together with --json")
    from lr2ppo.runs.listing import describe, list_runs, watch

    if arguments.watch is not None:
        watch(arguments.logs, arguments.watch)
    elif arguments.json:
        print(json.dumps([asdict(each) for each in list_runs(arguments.logs)], indent=1))  # noqa: T201 (exact)
    else:
        say("\n".join(describe(arguments.logs)))
