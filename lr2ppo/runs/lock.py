"""One process at a time owns a run's folder."""

import errno
import fcntl
import json
import os
import socket
import struct
import sys
import time
from io import TextIOWrapper
from pathlib import Path

from lr2ppo.errors import UserError

# Open for as long as this process lives: the system lets a lock go when its owner ends, however it ends.
_held: dict[Path, TextIOWrapper] = {}
# The system's `struct flock` and where in it the type stands, here and on BSDs and macOS.
FLOCK, TYPE = ("hhqqi4x", 0) if sys.platform == "linux" else ("qqihh", 3)


def lock_run(folder: Path) -> None:
    """Keep a run's folder for this process; raises `UserError` where another process that is alive has it."""
    path = lock_path(folder)
    if path in _held:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a+", encoding="utf-8")
    try:
        # Unlike flock's, such a lock is not handed on to processes that read ahead and may outlive their parent.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = _owner(file)
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise UserError(
            f"{folder}: another run of this name is at work{owner}; wait for it, stop it, or take another name"
        ) from None
    file.truncate(0)
    file.write(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": round(time.time())}) + "\n")
    file.flush()
    _held[path] = file


def lock_path(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.lock"


def is_locked(folder: Path) -> bool:
    """Whether a living process, on any machine, keeps a run's folder for itself.

    The system is asked who would be in the way of a lock, and none is taken: a run that starts meanwhile never meets
    this question.
    """
    path = lock_path(folder)
    if path in _held:
        # To open and close the file again would let go of this process's own lock.
        return True
    # All else 0: from the file's start to its end.
    asked = [0] * 5
    asked[TYPE] = fcntl.F_WRLCK
    try:
        with path.open("rb") as file:
            answer = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(FLOCK, *asked))
    except FileNotFoundError:
        return False
    return bool(struct.unpack(FLOCK, answer)[TYPE] != fcntl.F_UNLCK)


def _owner(file: TextIOWrapper) -> str:
    try:
        file.seek(0)
        facts = json.load(file)
        return f" (process {facts['pid']} on {facts['host']})"
    except (ValueError, KeyError, TypeError):
        return ""
