"""Signals that stop a run: it finishes its step, writes a checkpoint and exits with 128 + the signal's number."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

# Ctrl-C, a kill, a closed terminal, and Slurm's warning before a job's time limit.
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
# Slurm and the launcher may both forward the same signal.
SAME_SIGNAL_SECONDS = 1.0
NOTICE = b"\nstopping: finishing this step and writing a checkpoint; a second signal kills the run\n"


def handled_signals() -> list[signal.Signals]:
    """The stopping signals that this process does not ignore, as `nohup` makes it ignore a closed terminal."""
    return [number for number in STOPPING_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextmanager
def ended_by_interrupt() -> Iterator[None]:
    """Within the context, Ctrl-C ends this process immediately without output: for imports, which take seconds.

    Afterwards, Ctrl-C raises KeyboardInterrupt, unless another handler was set before.
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
    """Within the context, `signal` is the first stopping signal, or 0; a second one kills the process."""

    def __init__(self, prints: bool) -> None:
        """Set `prints` in the process that prints to the screen."""
        self.signal = 0
        self._noted = 0.0
        self._prints = prints
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._note) for number in handled_signals()}
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
        if self._prints:
            # Not print: the signal may have interrupted a print.
            os.write(2, NOTICE)


class ForwardedSignals:
    """Within the context, stopping signals are forwarded to child processes.

    `exit_code` is 128 + the number of the first signal, or 0 before one came.
    """

    def __init__(self) -> None:
        self.exit_code = 0
        self._processes: list[subprocess.Popen[bytes]] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._forward) for number in handled_signals()}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def add(self, process: subprocess.Popen[bytes]) -> None:
        """Forward signals to a process, also one that came while it was started."""
        self._processes.append(process)
        if self.exit_code:
            process.send_signal(self.exit_code - 128)

    def stop(self) -> None:
        """Ask all processes to stop."""
        self._send(signal.SIGTERM)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.exit_code = self.exit_code or 128 + number
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self._processes:
            # To one that has ended, nothing is sent.
            process.send_signal(number)


def follow_training_process(*_: object) -> None:
    """Make a data-loading worker ignore stopping signals and end quietly with its training process."""
    for number in STOPPING_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    report = sys.excepthook

    def report_others(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        # The thread that sends batches raises these if the training process is killed; errors of the reading itself
        # are reported elsewhere.
        if not issubclass(kind, ConnectionError | EOFError):
            report(kind, error, at)

    sys.excepthook = report_others
