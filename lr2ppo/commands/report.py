"""Write an HTML report of runs: results, training, reward model, clips and facts.

A single run includes the runs that it started from.
"""

import argparse
from pathlib import Path

from lr2ppo.commands.arguments import add_logs_argument, folder, require_rows
from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.files import check_inside, check_output
from lr2ppo.terminal import say

EXAMPLE = "lr2ppo report ppo/demo -o report.html"
DEFAULT_PAGE = Path("report.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="runs, as STAGE/NAME, NAME or a path; A,B is one row, such as a run per seed",
    )
    parser.add_argument("-o", "--out", type=Path, help=f"page to write (default {DEFAULT_PAGE})")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="the evaluated split (default test)")
    parser.add_argument("--frames-root", type=folder, help="folder of the clips' images (default the data folder)")
    add_logs_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    shown = arguments.out or DEFAULT_PAGE
    page = DEFAULT_PAGE if arguments.out is None else check_output(arguments.out)
    check_inside(page)
    require_rows(arguments.runs, arguments.logs)
    with ended_by_interrupt():
        from lr2ppo.report.load import find_rows
        from lr2ppo.report.page import write_report

    rows = find_rows(arguments.runs, arguments.logs)
    write_report(rows, arguments.split, page, arguments.frames_root)
    say(f"written: {shown} ({page.stat().st_size / 2**20:.1f} MiB); open it in a browser")
