"""Signals that stop a run."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lr2ppo.distributed import signals as interruption
from lr2ppo.distributed.signals import STOPPING_SIGNALS, StopRequest
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("number", STOPPING_SIGNALS)
def test_the_first_signal_is_noted_and_handlers_are_put_back(number: signal.Signals) -> None:
    # Tests run in the background may have started with some of them ignored.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with StopRequest(prints=False) as stop:
            assert stop.signal == 0
            os.kill(os.getpid(), number)
            assert stop.signal == number
            # Immediately again, as Slurm and a launcher may: it is the same request.
            os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_signals_that_were_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest(prints=False) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "SAME_SIGNAL_SECONDS", 0.0)
    child = os.fork()
    if child == 0:
        with StopRequest(prints=False):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGTERM


HANDS_OVER = """
import socket, sys, time
from multiprocessing import resource_sharer
from lr2ppo.distributed.signals import follow_training_process

follow_training_process()
# The channel for batches to the training process, which here disconnects right after its request.
address, _ = resource_sharer.DupFd(1)._id
asking = socket.socket(socket.AF_UNIX)
asking.connect(address)
asking.close()
time.sleep(0.5)
sys.excepthook(ValueError, ValueError("another fault"), None)
"""


def test_a_data_loading_worker_prints_nothing_if_the_training_process_is_killed() -> None:
    done = subprocess.run([sys.executable, "-c", HANDS_OVER], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stderr == "ValueError: another fault\n"


INTERRUPTED = """
import os, signal, sys
from lr2ppo.distributed.signals import ended_by_interrupt

handlers = {"default": signal.default_int_handler, "none": signal.SIG_DFL, "ignored": signal.SIG_IGN}
signal.signal(signal.SIGINT, handlers[sys.argv[1]])
try:
    with ended_by_interrupt():
        if sys.argv[2] == "within":
            os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    print("continued")
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(
    ("handler", "moment", "code", "printed"),
    [
        ("default", "within", -signal.SIGINT, ""),
        ("none", "within", -signal.SIGINT, ""),
        ("default", "after", 0, "interrupted\n"),
        ("none", "after", 0, "interrupted\n"),
        ("ignored", "within", 0, "continued\n"),
    ],
)
def test_an_interrupt_during_imports_ends_the_process_without_output(
    handler: str, moment: str, code: int, printed: str
) -> None:
    command = [sys.executable, "-c", INTERRUPTED, handler, moment]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, printed, "")
