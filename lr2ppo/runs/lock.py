"""File locks: only one process at a time owns a run's folder, and only one writes the results of its evaluations."""

import errno
import fcntl
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path

from lr2ppo.errors import UserError
from lr2ppo.files import open_regular, open_to_append
from lr2ppo.terminal import say

# Open as long as this process lives: the system releases a lock when its owner ends, in any way.
_held: dict[Path, TextIOWrapper] = {}
# In a run's folder, and left there: a process that waits for a file that another removes would lock another one.
RESULTS_LOCK = ".results.lock"
# The system's `struct flock` and the position of its type, on Linux and on BSDs and macOS.
FLOCK, TYPE = ("hhqqi4x", 0) if sys.platform == "linux" else ("qqihh", 3)


def lock_run(folder: Path) -> None:
    """Lock a run's folder for this process; raise `UserError` if another living process has locked it."""
    path = lock_path(folder)
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open_to_append(path)
    try:
        # Unlike flock's, such a lock is not inherited by data-loading workers, which may outlive their parent.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = _owner(file)
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise UserError(
                f"{path}: cannot be locked: {error.strerror}; without locks two runs of one name would mix, so give "
                "logs=FOLDER on a disk with POSIX locks"
            ) from None
        raise UserError(
            f"{folder}: another run of this name is running{owner}; wait for it, stop it, or use another name"
        ) from None
    file.truncate(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": round(time.time())}) + "\n")
    file.flush()
    _held[path] = file


def lock_path(folder: Path) -> Path:
    return folder.parent.absolute() / f".{folder.name}.lock"


def is_locked(folder: Path) -> bool:
    """Whether a living process, on any machine, has locked a run's folder.

    Queries the system for a conflicting lock without taking one, so that it never blocks a run that starts at the same
    time.
    """
    path = lock_path(folder)
    if path in _held:
        # Opening and closing the file again would release this process's lock.
        return True
    # All other fields 0: from the file's start to its end.
    asked = [0] * 5
    asked[TYPE] = fcntl.F_WRLCK
    try:
        with open_regular(path) as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(FLOCK, *asked))
    except FileNotFoundError:
        return False
    return bool(struct.unpack(FLOCK, answer)[TYPE] != fcntl.F_UNLCK)


@contextmanager
def results_locked(folder: Path) -> Iterator[None]:
    """Within the context, no other process writes the results of a run's evaluations; waits while one does.

    Where the disk has no locks, says so and goes on. Raises `UserError` if the lock's file is a link or no regular
    file, OSError if it cannot be opened.
    """
    path = folder / RESULTS_LOCK
    with open_to_append(path) as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX)
        except OSError as error:
            say(f"note: {path}: cannot be locked: {error.strerror}; here, evaluate this run once at a time\n")
        yield


def _owner(file: TextIOWrapper) -> str:
    try:
        file.seek(0)
        facts = json.load(file)
        return f" (process {facts['pid']} on {facts['host']})"
    except (ValueError, KeyError, TypeError):
        return ""
