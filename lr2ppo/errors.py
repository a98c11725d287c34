"""`UserError`, the exception for mistakes a user can fix, and how it is printed."""

import errno
import functools
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from reprlib import Repr
from typing import ParamSpec

from lr2ppo.terminal import say

Arguments = ParamSpec("Arguments")
# A file may hold thousands of faults; the first few show what kind they are.
FAULTS_SHOWN = 10
SECONDS_BEFORE_REPORTING = 20
# A hostile file may hold a text of any length; the ends of a message say what and where.
LONGEST_FAULT, LONGEST_MESSAGE = 600, 8000
_SHORTENED = Repr()
_SHORTENED.maxstring = _SHORTENED.maxother = 100
_SHORTENED.maxlevel = 3
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}
PERMISSIONS = {errno.EACCES, errno.EPERM}
# Errors of an open file name no path.
PATHLESS = DISK_ERRORS | PERMISSIONS | {errno.ENOENT}


class UserError(Exception):
    """A mistake the user can fix: the message gives the place, what was found, what was wanted and what to do."""

    def __init__(self, message: str) -> None:
        super().__init__(shorten_middle(message, LONGEST_MESSAGE))


def shorten_middle(text: str, most: int) -> str:
    """Leave out the middle of a text that is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} ... ({len(text) - 2 * half:,} characters left out) ... {text[-half:]}"


def show(value: object) -> str:
    """Return a value's `repr` for a message, without the middle of what is long or deep."""
    return _SHORTENED.repr(value)


def raise_faults(path: Path | str, faults: Sequence[str], advice: str) -> None:
    """Raise one `UserError` for all faults found in a file; do nothing if there are none."""
    if faults:
        shown = "\n".join(f"  {shorten_middle(fault, LONGEST_FAULT)}" for fault in faults[:FAULTS_SHOWN])
        more = f"\n  and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise UserError(f"{path}: {len(faults)} fault{'s' * (len(faults) > 1)} found; {advice}:\n{shown}{more}")


def advise(error: Exception) -> str:
    """What to do about an error of a path."""
    number = getattr(error, "errno", None)
    if number in PERMISSIONS:
        return "give yourself the permission, or give another path, and run the same command again"
    if number in DISK_ERRORS or not isinstance(error, OSError):
        return "free space or repair the disk, and run the same command again"
    return "give another path, or repair this one, and run the same command again"


def _path_error(error: OSError) -> str | None:
    """The message for an error of a path or a disk; None for any other, which is a bug."""
    if error.filename is None and error.errno not in PATHLESS:
        return None
    path = "" if error.filename is None else f"{error.filename}: "
    return f"{path}{error.strerror or error}; {advise(error)}"


@contextmanager
def path_errors_as_user_errors() -> Iterator[None]:
    """Within the context, or the decorated function, an OSError of a path is raised as `UserError`."""
    try:
        yield
    except OSError as error:
        message = _path_error(error)
        if message is None:
            raise
        raise UserError(message) from None


def _machine_error(error: Exception) -> str | None:
    """The message for an error caused by a path, the disk or too little memory; None for any other error."""
    if isinstance(error, OSError):
        return _path_error(error)
    # Of `Path.resolve`, up to Python 3.12.
    if str(error).startswith("Symlink loop from "):
        return f"{error}; {advise(OSError())}"
    # torch's messages, on a GPU and on a CPU.
    if isinstance(error, MemoryError) or re.search(r"out of memory|can't allocate memory", str(error)):
        return (
            "out of memory; lower train.clips_per_batch, train.pairs_per_clip or data.workers, "
            "or set compute.checkpoint_activations=true, and run the same command again"
        )
    return None


def print_error(message: str) -> None:
    """Print the one message of a command that fails."""
    say(f"\nerror: {message}", error=True)


def reports_user_errors(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Make a command exit with one message and code 2 on a `UserError`, without a traceback."""

    @functools.wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except UserError as error:
            # All processes of a job raise the same error; the launcher ends the others while they wait.
            if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
                time.sleep(SECONDS_BEFORE_REPORTING)
            print_error(str(error))
            sys.exit(2)
        except BrokenPipeError:
            # The reader of the output has ended, such as head: nothing is left to print to.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(128 + signal.SIGPIPE)
        except (OSError, MemoryError, RuntimeError) as error:
            message = _machine_error(error)
            if message is None:
                raise
            print_error(message)
            sys.exit(2)
        except KeyboardInterrupt:
            say("\ninterrupted", error=True)
            sys.exit(130)
        finally:
            _end_workers()

    return guarded


def _end_workers() -> None:
    """End the processes that read data for this one: they ignore signals, and would be waited for without end."""
    workers = multiprocessing.active_children()
    if workers:
        # torch takes the end of a worker for a fault.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for worker in workers:
        worker.kill()
