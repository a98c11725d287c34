"""Run commands of lr2ppo in separate processes, several at a time, each after those that it needs."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from os import environ
from tempfile import TemporaryFile
from typing import IO

from lr2ppo.distributed.signals import ForwardedSignals
from lr2ppo.terminal import say

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Command:
    """The arguments of a command of lr2ppo, and the names of the commands that must have ended before."""

    name: str
    arguments: Sequence[str]
    needs: AbstractSet[str] = frozenset()


@dataclass(frozen=True)
class _Started:
    command: Command
    process: subprocess.Popen[bytes]
    place: int
    output: IO[bytes] | None

    @property
    def exit_code(self) -> int | None:
        """Its exit code as a shell shows it; None while it runs."""
        code = self.process.poll()
        return code if code is None or code >= 0 else 128 - code

    def close(self, show: bool) -> None:
        """Remove what it printed, and before print it if wanted."""
        if self.output is not None:
            with self.output:
                self.output.seek(0)
                if show:
                    say(self.output.read().decode(errors="replace"), error=True)


def run_command(*arguments: str) -> None:
    """Run a command of lr2ppo; exit with its exit code if it fails."""
    run_commands([Command(arguments[0], arguments)], quiet=False)


def run_commands(
    commands: Sequence[Command],
    places: Sequence[Mapping[str, str]] = ({},),
    begin: Callable[[Command, int], None] = lambda *_: None,
    quiet: bool = True,
) -> None:
    """Run commands in their order, one in each of the places, each after those of them that it needs.

    A place has environment variables of its commands. `begin` gets each command and how many have ended. With `quiet`,
    what a command prints is shown only if it fails. Stopping signals are forwarded to all that run. If a command fails,
    the others are asked to stop, and this process exits with the failed one's exit code once they have ended.
    """
    waiting, running, ended = list(commands), list[_Started](), set[str]()
    known = {command.name for command in commands}
    code = 0
    with ForwardedSignals() as signals:
        while running or (waiting and not code):
            while not code and len(running) < len(places) and (ready := _ready(waiting, known - ended)):
                waiting.remove(ready)
                begin(ready, len(ended))
                place = min(set(range(len(places))) - {each.place for each in running})
                running.append(_start(ready, place, places[place], quiet))
                signals.add(running[-1].process)
            done = _wait_for_any(running)
            running.remove(done)
            ended.add(done.command.name)
            if done.exit_code and not code:
                code = done.exit_code
                signals.stop()
            done.close(show=bool(done.exit_code))
            code = code or signals.exit_code
    if code:
        sys.exit(code)


def _ready(waiting: Sequence[Command], missing: AbstractSet[str]) -> Command | None:
    """The first command whose needs have ended."""
    return next((command for command in waiting if not command.needs & missing), None)


def _start(command: Command, place: int, variables: Mapping[str, str], quiet: bool) -> _Started:
    output = TemporaryFile() if quiet else None  # noqa: SIM115 (`close` closes it)
    words = [sys.executable, "-m", "lr2ppo", *command.arguments]
    process = subprocess.Popen(words, stdout=output, stderr=output, env=environ | dict(variables))  # noqa: S603
    return _Started(command, process, place, output)


def _wait_for_any(running: Sequence[_Started]) -> _Started:
    while True:
        for each in running:
            if each.exit_code is not None:
                return each
        time.sleep(POLL_SECONDS)
