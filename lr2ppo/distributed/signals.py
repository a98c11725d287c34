"""Signals that ask a run to stop: it finishes its step, writes a checkpoint and ends with 128 + the signal's number."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

# Ctrl-C, a kill, a closed terminal, and the warning that Slurm sends before a job's time is over.
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# Slurm and the launcher may both hand the same signal on.
SAME_SIGNAL_SECONDS = 1.0
NOTICE = b"\nasked to stop: finishing this step and writing a checkpoint; once more ends the run at once\n"


def heeded_signals() -> list[signal.Signals]:
    """Those of them that whoever started this process has not had ignored, as `nohup` does with a closed terminal."""
    return [number for number in STOPPING_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """Within it, Ctrl-C ends this process at once and without a word: for imports, which take seconds.

    Behind it, Ctrl-C is a KeyboardInterrupt, unless it was something else before.
    """
    if signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, signal.SIG_DFL):
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class StopRequest:
    """Within it, the first stopping signal is noted in `signal`, else 0; a second one ends the process at once."""

    def __init__(self, talks: bool) -> None:
        """`talks` where this process is the one that writes to the screen."""
        self.signal = 0
        self._noted = 0.0
        self._talks = talks
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in heeded_signals()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            if time.monotonic() - self._noted > SAME_SIGNAL_SECONDS:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.signal, self._noted = number, time.monotonic()
        if self._talks:
            # Not print: the signal may have come within one.
            os.write(2, NOTICE)


@contextmanager
def forwarded_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Within it, stopping signals go on to a process that this one waits for."""
    before = {number: signal.signal(number, lambda sent, _: process.send_signal(sent)) for number in heeded_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def follow_training_process(*_: object) -> None:
    """Leave it to the training process to stop, and end with it without a word: for processes that read ahead."""
    for number in STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    tell = sys.excepthook

    def tell_others(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        # What the thread that hands over what was read meets where the training process is killed; errors of the
        # reading itself go another way.
        if not issubclass(kind, ConnectionError | EOFError):
            tell(kind, error, at)

    sys.excepthook = tell_others
