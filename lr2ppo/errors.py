"""`UserError`, the exception for mistakes a user can fix, and how it is printed."""

import errno
import functools
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ParamSpec

Arguments = ParamSpec("Arguments")
# A file may hold thousands of faults; the first few show what kind they are.
FAULTS_SHOWN = 10
SECONDS_BEFORE_REPORTING = 20
DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.ENOENT,
    errno.ESTALE,
    errno.EACCES,
    errno.EPERM,
}


class UserError(Exception):
    """A mistake the user can fix: the message gives the place, what was found, what was wanted and what to do."""


def raise_faults(path: Path | str, faults: Sequence[str], advice: str) -> None:
    """Raise one `UserError` for all faults found in a file; do nothing if there are none."""
    if faults:
        shown = "\n".join(f"  {fault}" for fault in faults[:FAULTS_SHOWN])
        more = f"\n  and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise UserError(f"{path}: {len(faults)} fault{'s' * (len(faults) > 1)} found; {advice}:\n{shown}{more}")


def _machine_error(error: Exception) -> str | None:
    """The message for an error caused by the disk or by too little memory; None for any other error."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; free space or repair the disk, and run the same command again"
    # torch's messages, on a GPU and on a CPU.
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory", str(error)):
        return (
            "out of memory; lower train.clips_per_batch, train.pairs_per_clip or data.workers, "
            "or set compute.checkpoint_activations=true, and run the same command again"
        )
    return None


def reports_user_errors(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Make a command exit with one message and code 2 on a `UserError`, without a traceback."""

    @functools.wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            # All processes of a job raise the same error; the launcher ends the others while they wait.
            if int(os.environ.get("LOCAL_RANK", "0")) > 0:
                time.sleep(SECONDS_BEFORE_REPORTING)
            print(f"\nerror: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        except (OSError, MemoryError, RuntimeError) as error:
            message = _machine_error(error)
            if message is None:
                raise
            print(f"\nerror: {message}", file=sys.stderr, flush=True)
            sys.exit(2)
        except KeyboardInterrupt:
            print("\ninterrupted", file=sys.stderr, flush=True)
            sys.exit(130)

    return guarded
