"""The progress of a run: a progress bar on the screen, and `progress.json` for other processes."""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from tqdm import tqdm

from lr2ppo.errors import UserError
from lr2ppo.files import write_json
from lr2ppo.runs.lookup import PROGRESS

# The widest line, and the width assumed for a terminal that reports none.
MAX_COLUMNS, DEFAULT_COLUMNS = 100, 80
LONGEST_NAME, LONGEST_BAR, SHORTEST_BAR = 32, 20, 4
SECONDS_BETWEEN_WRITES = 5.0
SHORT_NAMES = {"pair_accuracy": "pair acc."}


class Progress:
    """Within the context, count the steps of a run, show them on the main process's terminal and save them."""

    def __init__(
        self, folder: Path, metric: str, best: float | None, steps: int, done: int, is_main: bool = True
    ) -> None:
        """`metric` is the metric that selects the best weights, `best` its highest value before this process."""
        self._folder, self._metric, self._best, self._is_main = folder, metric, best, is_main
        self._steps, self._first_step, self._done = steps, done, done
        self._last: float | None = None
        self._shown: dict[str, float] = {}
        self._name = f"{folder.parent.name}/{folder.name}"

    def __enter__(self) -> Self:
        self._started = self._written = time.monotonic()
        self._bar = tqdm(
            total=self._steps, initial=self._done, ncols=MAX_COLUMNS, disable=None if self._is_main else True,
            bar_format=self._line(),
        )  # fmt: skip
        self._write()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.close()
        self._write()

    def advance(self, done: int, shown: Mapping[str, float]) -> None:
        """Count the steps done, and show some values of the last one."""
        made, self._done = done - self._done, done
        self._shown = dict(shown)
        if not self._bar.disable:
            self._bar.bar_format = self._line()
        self._bar.update(made)
        if time.monotonic() - self._written > SECONDS_BETWEEN_WRITES:
            self._write()

    def evaluated(self, last: float, best: float | None) -> None:
        """Show the metric of the last evaluation, and its highest value so far."""
        self._last, self._best = last, best
        if not self._bar.disable:
            self._bar.bar_format = self._line()
            self._bar.refresh()
        self._write()

    @property
    def seconds_left(self) -> float | None:
        """Seconds left at this process's pace, with evaluations; None before its first step and after the last."""
        made = self._done - self._first_step
        if made == 0 or self._done == self._steps:
            return None
        return (time.monotonic() - self._started) / made * (self._steps - self._done)

    def _line(self) -> str:
        width = LONGEST_NAME
        name = self._name if len(self._name) <= width else f"{self._name[: width - 2]}.."
        pieces = [
            (f"{name} {100 * self._done // self._steps:3}%", 9),
            (f"{self._done}/{self._steps}", 7),
            *((f"{name} {value:.4f}", 3) for name, value in self._shown.items()),
            (self._quality(), 5),
            (self._pace(), 1),
            (self._time(), 8),
        ]
        return bar_format(pieces, min(MAX_COLUMNS, terminal_columns(sys.stderr)))

    def _quality(self) -> str:
        values = [] if self._last is None else [f"{self._last:.3f}"]
        values += [] if self._best is None else [f"best {self._best:.3f}"]
        return f"{SHORT_NAMES.get(self._metric, self._metric)} {', '.join(values)}" if values else ""

    def _pace(self) -> str:
        made, seconds = self._done - self._first_step, time.monotonic() - self._started
        if made == 0 or seconds == 0:
            return ""
        return f"{made / seconds:.1f}/s" if made > seconds else f"{seconds / made:.1f} s each"

    def _time(self) -> str:
        if self._done == self._steps:
            return f"took {tqdm.format_interval(time.monotonic() - self._started)}"
        return "" if self.seconds_left is None else time_left(self.seconds_left)

    def _write(self) -> None:
        self._written = time.monotonic()
        # Do not create a folder again that was removed.
        if self._is_main and self._folder.is_dir():
            seconds = None if self.seconds_left is None else round(self.seconds_left, 1)
            # A full disk should stop a run when it writes results, not here.
            with suppress(UserError):
                write_json(self._folder / PROGRESS, {"step": self._done, "steps": self._steps, "seconds_left": seconds})


def time_left(seconds: float) -> str:
    return f"{tqdm.format_interval(seconds)} left"


def bar_format(pieces: Sequence[tuple[str, int]], columns: int) -> str:
    """Build tqdm's bar format from pieces with priorities; the least important are left out if they do not fit.

    A bar follows the first piece if there is room.
    """
    kept = [piece for piece in pieces if piece[0]]
    while len(kept) > 1 and len(_join(kept)) > columns:
        kept.remove(min(kept, key=lambda piece: piece[1]))
    room = min(columns - len(_join(kept)) - len(" ||"), LONGEST_BAR)
    if len(kept) == 1 or room < SHORTEST_BAR:
        return _join(kept)[:columns]
    return f"{kept[0][0]} |{{bar:{room}}}|  {_join(kept[1:])}"


def _join(pieces: Sequence[tuple[str, int]]) -> str:
    return "  ".join(text for text, _ in pieces)


def terminal_columns(stream: TextIO) -> int:
    """The width of the terminal that a stream writes to, or the default if it is unknown."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or DEFAULT_COLUMNS
    except OSError:
        return DEFAULT_COLUMNS
