"""Where a run's time goes, and how long its steps take."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Literal

Activity = Literal["reading", "evaluating", "writing"]


class Clock:
    """Count the seconds that a run spends on each activity, and the median seconds of a step.

    On a GPU these are seconds of the program, which does not wait for the GPU's steps.
    """

    def __init__(self) -> None:
        self.spent: defaultdict[Activity, float] = defaultdict(float)
        self._current: Activity | None = None
        self._laps: list[float] = []
        self._lap: tuple[float, int] | None = None

    @contextmanager
    def spending(self, activity: Activity) -> Iterator[None]:
        """Within the context, time is spent on an activity, without that of contexts inside it."""
        started, outer, self._current = time.monotonic(), self._current, activity
        try:
            yield
        finally:
            seconds, self._current = time.monotonic() - started, outer
            self.spent[activity] += seconds
            if outer is not None:
                self.spent[outer] -= seconds

    def lap(self, step: int) -> None:
        """Note that the steps up to this one are made; evaluations and files between steps do not count."""
        now = time.monotonic() - self.spent["evaluating"] - self.spent["writing"]
        if self._lap is not None and step > self._lap[1]:
            self._laps.append((now - self._lap[0]) / (step - self._lap[1]))
        self._lap = now, step

    @property
    def seconds_per_step(self) -> float | None:
        """The median over the laps; None without any."""
        return median(self._laps) if self._laps else None
