"""The command `lr2ppo`: the table of its commands; only the requested one is imported."""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.errors import UserError, reports_user_errors
from lr2ppo.terminal import say

# Command -> description; its module in `lr2ppo.commands` has the same name, with underscores.
COMMANDS = {
    "train": "train a stage: pointwise, finetune, reward, distill or ppo",
    "pipeline": "train and evaluate all stages, also over seeds",
    "compare": "train and compare methods over seeds, as a set says",
    "evaluate": "evaluate a run, or compare evaluated runs",
    "rank": "rank the labels of a clip, or of every clip of a file",
    "report": "write an HTML page of runs: results, curves, clips",
    "runs": "list the runs: progress, best metric, state",
    "demo": "open a page that ranks labels for the frames you drop on it",
    "export": "write a run's model as a folder to share",
    "convert": "turn a table of your own clips into a data folder",
    "check": "check whether training can start on a data folder",
    "extract": "extract the features of a data folder",
    "pretrain": "train tiny encoders, if you have no pretrained ones",
    "mini": "generate the mini benchmark",
    "published": "convert a published checkpoint into a run, or back",
    "compare-published": "compare the runs of all stages with the published results",
    "benchmark": "time a stage's training step",
}
EXAMPLE = 'lr2ppo rank ppo/quickstart --frames holiday.mp4 --labels "beach,car,night"'


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows its arguments")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments; options and positional arguments may be mixed."""
        arguments, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            known = nearest(unknown[0], self._option_string_actions)
            raise UserError(f"found {unknown[0]!r}, wanted an argument from {self.prog} --help{known}")
        return arguments


def isolate_imports() -> None:
    """Let the processes that this one starts import this package from here, and nothing from the current folder.

    Python searches the current folder first if a module is given with -m, and would run a `yaml.py` that lies there.
    """
    os.environ["PYTHONSAFEPATH"] = "1"
    root, places = Path(__file__).resolve().parents[1], os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root.name not in ("site-packages", "dist-packages") and places[0] != str(root):
        os.environ["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, places)])


@reports_user_errors
def main(words: Sequence[str] | None = None) -> None:
    """Run a command line (default: the arguments of this process)."""
    isolate_imports()
    name, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if name in ("-h", "--help"):
        say(describe())
    elif name == "--version":
        say(import_module("lr2ppo.version").__version__)
    elif name in COMMANDS:
        with ended_by_interrupt():
            command, parser = open_command(name)
            arguments = parser.read(rest)
        # What python runs in each process that the launcher starts.
        arguments.command = ["-m", "lr2ppo", name, *rest]
        command.run(arguments)
    else:
        raise UserError(f"found {name!r}, wanted a command from lr2ppo --help{nearest(name, COMMANDS)}")


def open_command(name: str) -> tuple[ModuleType, Parser]:
    """Import a command's module and build its argument parser."""
    command = import_module(f"lr2ppo.commands.{name.replace('-', '_')}")
    parser = Parser(
        prog=f"lr2ppo {name}",
        description=command.__doc__,
        epilog=f"example: {command.EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_arguments(parser)
    return command, parser


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing if no known word is similar."""
    from difflib import get_close_matches

    close = get_close_matches(word.partition("=")[0], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def describe() -> str:
    """The help text of `lr2ppo`, one line per command."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            *("usage: lr2ppo COMMAND ...", "", "Label relevance ranking by reinforcement learning (LR2PPO).", ""),
            *("commands:", *lines, "", "lr2ppo COMMAND --help shows the arguments of a command, with an example."),
            f"example: {EXAMPLE}",
        ]
    )
