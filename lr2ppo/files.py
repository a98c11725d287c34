"""Read and write files: only regular ones, and each is complete before it gets its name."""

import errno
import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable
from glob import glob
from io import BufferedReader
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lr2ppo.errors import UserError, advise

# JSON and the command line can hold lone surrogates and null characters; files and file names cannot.
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
# Names of files that are being written, and that a killed process leaves.
PARTIAL_SUFFIX = ".partial"
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_name(path: Path) -> None:
    """Raise OSError if a path holds a null character, which no file's name does."""
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "holds a null character", str(path))


def check_regular(path: Path) -> None:
    """Raise OSError if a path, links followed, is missing or no regular file: reading a pipe or a device may hang."""
    check_name(path)
    _require_regular(os.stat(path).st_mode)


def check_output(path: Path) -> None:
    """Raise `UserError` if a file to write exists and is no regular file, which writing would replace or hang on."""
    try:
        check_regular(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {advise(error)}") from None


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; raises OSError if it is missing or no regular file, without waiting for a pipe."""
    check_name(path)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(os.fstat(handle).st_mode)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(f"is {KINDS.get(stat.S_IFMT(mode), 'no file')}, wanted a regular file")


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark; raises OSError as `open_regular`, UnicodeDecodeError."""
    with open_regular(path) as file:
        return file.read().decode("utf-8-sig")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises OSError as `open_regular`, ValueError if it is not JSON, RecursionError if too deep."""
    return json.loads(read_text(path))


def file_fingerprint(path: Path) -> str:
    """The SHA-256 of a file's content, as `sha256sum` prints it; raises OSError as `open_regular`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def match_paths(root: Path, pattern: str) -> list[Path]:
    """The paths that a pattern matches, sorted; it starts at `root`, whose name is no pattern.

    Nor are the pattern's first parts as far as they exist as they are written, such as a folder called `a[1]`.
    """
    parts = Path(pattern).parts
    exists = [os.path.lexists(root.joinpath(*parts[: number + 1])) for number in range(len(parts))]
    literal = exists.index(False) if False in exists else len(parts)
    place = root.joinpath(*parts[:literal])
    if literal == len(parts):
        return [place]
    return [place / found for found in sorted(glob(os.path.join(*parts[literal:]), root_dir=place))]


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name with `write(path)`, then rename it; a link's target is written.

    Raises `UserError` if it cannot be written: the disk is full, read-only, or gone, or the path names no regular file.
    """
    try:
        check_name(path)
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        check_output(path)
        # A name may be as long as the file system allows; the temporary one must not be longer.
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}-", suffix=PARTIAL_SUFFIX)
        os.close(handle)
        partial = Path(name)
        try:
            write(partial)
            partial.chmod(0o644)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written: {reason}; earlier files are intact; {advise(error)}") from None


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes left in a folder; only for folders that no other process writes to."""
    for path in folder.rglob(f".*-*{PARTIAL_SUFFIX}"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
