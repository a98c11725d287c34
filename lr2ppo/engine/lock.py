"""One process at a time owns a run's folder."""

import errno
import fcntl
import json
import os
import socket
import time
from io import TextIOWrapper
from pathlib import Path

from lr2ppo.errors import UserError

# Open for as long as this process lives: the system lets a lock go when its owner ends, however it ends.
_held: dict[Path, TextIOWrapper] = {}


def lock_run(folder: Path) -> None:
    """Keep a run's folder for this process; raises `UserError` where another process that is alive has it."""
    path = folder.parent / f".{folder.name}.lock"
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


def _owner(file: TextIOWrapper) -> str:
    try:
        file.seek(0)
        facts = json.load(file)
        return f" (process {facts['pid']} on {facts['host']})"
    except (ValueError, KeyError, TypeError):
        return ""
