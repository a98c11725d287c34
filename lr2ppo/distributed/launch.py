"""torchrun with one process per GPU by default; a failed stage ends it with the stage's message and exit code."""

import signal

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Importing torch takes seconds; Ctrl-C should not print a traceback then.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import atexit
import logging
import os
import re
import runpy
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn

import torch
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing.api import PContext, SignalException, SubprocessContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from lr2ppo.distributed.processes import GROUP_FILE, is_started
from lr2ppo.distributed.signals import SAME_SIGNAL_SECONDS, STOPPING_SIGNALS, handled_signals
from lr2ppo.errors import UserError, print_error, raise_faults, reports_user_errors

SEVERAL_NODES = "NNODES=2 NODE_RANK=0 MASTER_ADDR=node0 MASTER_PORT=29500"
HIGHEST_PORT = 65535
NOTHING = "nothing"
# How long processes have to finish a step and write a checkpoint when the run is asked to stop.
SECONDS_TO_STOP = 45


def count_processes() -> int:
    """The number of processes on this machine: `NPROC`, else one per GPU, else one."""
    wanted = os.environ.get("NPROC")
    if wanted is None:
        return torch.cuda.device_count() or 1
    if not _is_whole(wanted, 1):
        raise UserError(f"NPROC: found {wanted!r}, wanted a whole number of processes, such as NPROC=2")
    return int(wanted)


def count_nodes() -> int:
    """The number of machines of the run: `NNODES`, else one."""
    wanted = os.environ.get("NNODES", "1")
    if not _is_whole(wanted, 1):
        raise UserError(f"NNODES: found {wanted!r}, wanted a whole number of machines, such as {SEVERAL_NODES}")
    return int(wanted)


def rendezvous_arguments(nodes: int, file: Path) -> list[str]:
    """torchrun's rendezvous arguments: `file`, which does not exist yet, on one machine.

    A file, because torchrun would open a port to the network and unpickle what it is sent. On several machines they
    come from `NODE_RANK`, `MASTER_ADDR` and `MASTER_PORT`; raises `UserError` if one of these cannot be used.
    """
    if nodes == 1:
        return ["--rdzv-backend=c10d", "--rdzv-conf=store_type=file", f"--rdzv-endpoint={file}"]
    rank, address, port = (os.environ.get(name, "") for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT"))
    faults = []
    if not _is_whole(rank, 0, nodes - 1):
        faults.append(f"NODE_RANK: found {rank or NOTHING}, wanted this machine's number, 0 to {nodes - 1}")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", address):
        faults.append(f"MASTER_ADDR: found {address or NOTHING}, wanted the name or IPv4 address of machine 0")
    if not _is_whole(port, 1, HIGHEST_PORT):
        faults.append(f"MASTER_PORT: found {port or NOTHING}, wanted a free port of machine 0, 1 to {HIGHEST_PORT}")
    raise_faults(f"NNODES={nodes}", faults, f"set them on each machine, such as {SEVERAL_NODES}")
    return [f"--nnodes={nodes}", f"--node-rank={rank}", f"--master-addr={address}", f"--master-port={port}"]


def stop_options() -> list[str]:
    """Return torchrun's arguments for the stopping signals and the time that processes have to stop.

    If torch's launcher lacks one of them, patch the launcher to do the same.
    """
    known, options = get_args_parser().format_help(), []
    if "--signals-to-handle" in known:
        options.append(f"--signals-to-handle={','.join(number.name for number in handled_signals())}")
    else:
        _patch_signals()
    if "--shutdown-timeout" in known:
        options.append(f"--shutdown-timeout={SECONDS_TO_STOP}")
    else:
        _patch_timeout()
    return options


def _patch_signals() -> None:
    handled, start = handled_signals(), SubprocessContext._start
    others = {number: signal.getsignal(number) for number in {*STOPPING_SIGNALS, signal.SIGQUIT} - {*handled}}

    def start_processes(self: SubprocessContext) -> None:
        # The launcher has just set its handler for a fixed list of signals. Processes inherit ignored signals.
        handler = signal.getsignal(signal.SIGTERM)
        for number in handled:
            signal.signal(number, handler)
        for number, before in others.items():
            signal.signal(number, before)
        start(self)

    SubprocessContext._start = start_processes  # type: ignore[method-assign]


def _patch_timeout() -> None:
    close = PContext.close

    def close_in_time(self: PContext, death_sig: signal.Signals | None = None, timeout: int = SECONDS_TO_STOP) -> None:
        close(self, death_sig, timeout)

    PContext.close = close_in_time  # type: ignore[method-assign]


def _is_whole(text: str, least: int, most: int | None = None) -> bool:
    return bool(re.fullmatch(r"[0-9]{1,9}", text)) and least <= int(text) and (most is None or int(text) <= most)


@contextmanager
def ended_by_second_signal() -> Iterator[None]:
    """Within the context, a second stopping signal kills all processes immediately."""
    woken, waking = socket.socketpair()
    waking.setblocking(False)

    def watch() -> None:
        first = None
        while number := woken.recv(1):
            if number[0] not in STOPPING_SIGNALS:
                continue
            if first is None:
                first = time.monotonic()
            elif time.monotonic() - first > SAME_SIGNAL_SECONDS:
                _kill_children()
                os._exit(128 + number[0])

    threading.Thread(target=watch, daemon=True).start()
    # Receives signals in addition to the launcher's handlers, which wait for the processes to end.
    before = signal.set_wakeup_fd(waking.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        waking.close()


def _kill_children() -> None:
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            # Each leads a process group, which includes its data-loading workers.
            os.killpg(int(child), signal.SIGKILL)


def run_in_processes(work: Callable[[], None], command: Sequence[str], restarts: int = 0) -> None:
    """Do the work in this process if one is enough; otherwise start `command` in the requested number of processes.

    `command` is what follows `python` on a command line that calls this function again, which then does the work.
    Failed processes are restarted up to `restarts` times. Raises `UserError` if the environment's process settings
    cannot be used.
    """
    if is_started() or (count_processes() == count_nodes() == 1 and not restarts):
        # A single process needs no launcher.
        work()
    else:
        start(command, restarts)


def start(command: Sequence[str], restarts: int = 0) -> None:
    """Run a torchrun command in the number of processes that the environment requests.

    Exits with 2 if the command refused its input, else with the exit code of the failed process.
    """
    with TemporaryDirectory(prefix="lr2ppo-") as private:
        _start(command, restarts, Path(private))


def _start(command: Sequence[str], restarts: int, private: Path) -> None:
    """Do what `start` does; `private` is a folder that only this user can read and write."""
    processes, nodes = count_processes(), count_nodes()
    rendezvous = rendezvous_arguments(nodes, private / "rendezvous")
    _keep_local(nodes, private / "group")
    # Share the machine's cores among the processes; torchrun would give each one thread.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    # Otherwise restarted processes would find the addresses of ended ones, and wait for them.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    safety = [f"--max-restarts={restarts}", *stop_options()]
    # Processes start through this module, so that Ctrl-C prints no traceback in them either.
    command = ["-m", "lr2ppo.distributed.launch"] * ("-m" in command[:1]) + [*command]
    arguments = get_args_parser().parse_args([*rendezvous, f"--nproc-per-node={processes}", *safety, *command])
    try:
        with ended_by_second_signal():
            run(arguments)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        # A process that was asked to stop has reported it.
        if failure.exitcode not in {2, *(128 + number for number in STOPPING_SIGNALS)}:
            how = (
                f"was killed by signal {-failure.exitcode}"
                if failure.exitcode < 0
                else f"ended with exit code {failure.exitcode}"
            )
            of = f"of {processes}" if nodes == 1 else f"({processes} on this machine, one of {nodes})"
            print_error(f"process {rank} {of} {how}; the others were stopped")
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
    except DistError as error:
        if nodes == 1:
            raise
        raise UserError(
            f"{rendezvous[-2]} {rendezvous[-1]}: the machines did not find each other: {error} "
            "Start the same script on each machine, with the same NNODES, MASTER_ADDR and MASTER_PORT"
        ) from None


def _keep_local(nodes: int, file: Path) -> None:
    """Let the processes of one machine meet in `file`, and talk over its loopback: no other can reach them."""
    os.environ.pop(GROUP_FILE, None)
    if nodes == 1:
        os.environ[GROUP_FILE] = str(file)
        if "lo" in (name for _, name in socket.if_nameindex()):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")


def run_module(name: str, *arguments: str) -> None:
    """Run a module in this process, as `python -m` does."""
    sys.argv[:] = [name, *arguments]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


@reports_user_errors
def main() -> None:
    """Run the module given with `-m` in the requested number of processes, or here if this is one of them.

    Without `-m`, takes torchrun's arguments.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    command = sys.argv[1:]
    if command[:1] == ["-m"]:
        run_in_processes(lambda: run_module(*command[1:]), command)
    else:
        start(command)


def end_at_once(code: int) -> NoReturn:
    """End this process after its exit handlers, without the interpreter's shutdown.

    During that, up to Python 3.13, a thread of gloo that waits for Python's lock is ended in a way that aborts the
    process.
    """
    atexit._run_exitfuncs()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if not is_started():
        main()
        sys.exit()
    try:
        main()
    except SystemExit as ended:
        end_at_once(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
    except BaseException:
        traceback.print_exc()
        end_at_once(1)
    end_at_once(0)
