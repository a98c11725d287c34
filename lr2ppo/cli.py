"""The command `lr2ppo`: the table of its commands, of which only the one that is asked for is imported."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from types import ModuleType
from typing import NoReturn

from lr2ppo.distributed.signals import ended_by_interrupt
from lr2ppo.errors import UserError, reports_user_errors

# Command -> what it does; its module in `lr2ppo.commands` has the same name, with underscores.
COMMANDS = {
    "train": "train a stage: pointwise, reward or ppo",
    "pipeline": "train and evaluate all stages, also over seeds",
    "evaluate": "evaluate a run, or show evaluated runs side by side",
    "rank": "rank the labels of a clip, or of every clip of a file",
    "report": "write an HTML page of runs: results, curves, clips",
    "runs": "list the runs: progress, best metric, state",
    "demo": "open a page that ranks labels for the frames you drop on it",
    "export": "write a run's model as a folder to give away",
    "convert": "turn a table of your own clips into a data folder",
    "check": "check whether training can start on a data folder",
    "extract": "extract the features of a data folder",
    "pretrain": "train tiny encoders, where there are no pretrained ones",
    "mini": "write the generated benchmark",
    "published": "convert a published checkpoint into a run, or back",
    "compare-published": "show the runs of all stages beside the published figures",
    "benchmark": "time a stage's training step",
}
EXAMPLE = 'lr2ppo rank ppo/quickstart --frames holiday.mp4 --labels "beach,car,night"'


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are `UserError`s."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows what it takes")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments; options may stand anywhere among the others."""
        arguments, unknown = self.parse_known_intermixed_args(words)
        if unknown:
            known = nearest(unknown[0], self._option_string_actions)
            raise UserError(f"found {unknown[0]!r}, which is none of what {self.prog} --help shows{known}")
        return arguments


@reports_user_errors
def main(words: Sequence[str] | None = None) -> None:
    """Run the command that the words of a command line name (default: those of this process)."""
    name, *rest = (sys.argv[1:] if words is None else words) or ["--help"]
    if name in ("-h", "--help"):
        print(describe())
    elif name == "--version":
        print(import_module("lr2ppo.version").__version__)
    elif name in COMMANDS:
        with ended_by_interrupt():
            command, parser = open_command(name)
            arguments = parser.read(rest)
        # What python runs in processes that are started for the same work.
        arguments.command = ["-m", "lr2ppo", name, *rest]
        command.run(arguments)
    else:
        raise UserError(f"found {name!r}, wanted a command that lr2ppo --help shows{nearest(name, COMMANDS)}")


def open_command(name: str) -> tuple[ModuleType, Parser]:
    """A command's module, and the parser of its arguments."""
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
    """`; did you mean ...?`, or nothing where no known word is like it."""
    from difflib import get_close_matches

    close = get_close_matches(word.partition("=")[0], known, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def describe() -> str:
    """The help of the whole: each command in one line."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            *("usage: lr2ppo COMMAND ...", "", "Label relevance ranking by reinforcement learning (LR2PPO).", ""),
            *("commands:", *lines, "", "lr2ppo COMMAND --help shows what a command takes, with an example."),
            f"example: {EXAMPLE}",
        ]
    )
