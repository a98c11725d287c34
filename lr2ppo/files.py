"""Read and write files: only regular ones, and each is complete before it gets its name."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from io import BufferedReader
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from lr2ppo.errors import UserError, advise

# JSON and the command line can hold lone surrogates and null characters; files and file names cannot.
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
# Bytes of a YAML file, and values it stands for: far more than any config has, and read within seconds.
MOST_YAML = 2**18
# Digits of longer numbers take a time that grows with their square.
LONGEST_NUMBER = 1000
TEXT_TAG = "tag:yaml.org,2002:str"
# The weights in the folder of a model.
WEIGHTS_FILE = "model.safetensors"
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


class NotAFileError(OSError):
    """A path that names a folder, a pipe or another thing that cannot be read as a file."""

    def __init__(self, path: Path, mode: int) -> None:
        found = KINDS.get(stat.S_IFMT(mode), "no file")
        super().__init__(errno.EINVAL, f"is {found}, wanted a regular file", str(path))

    def __str__(self) -> str:
        return str(self.strerror)


def check_regular(path: Path) -> None:
    """Raise OSError if a path, links followed, is missing or no regular file: reading a pipe or a device may hang."""
    check_name(path)
    _require_regular(path, os.stat(path).st_mode)


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
        _require_regular(path, os.fstat(handle).st_mode)
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAFileError(path, mode)


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


def read_yaml(path: Path) -> Any:
    """Read a YAML file as plain values; raises OSError as `open_regular`, ValueError if it is not YAML or too large."""
    with open_regular(path) as file:
        content = file.read(MOST_YAML + 1)
    if len(content) > MOST_YAML:
        raise ValueError(f"is larger than {MOST_YAML:,} bytes")
    return parse_yaml(content.decode("utf-8-sig"))


def parse_yaml(text: str) -> Any:
    """Return the plain values of a YAML text; raises ValueError if it is not YAML, too deep or its aliases too many."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if _written_out(node, {}) > MOST_YAML:
            raise ValueError("its aliases stand for too many values")
        return None if node is None else loader.construct_document(node)
    except Exception as error:
        # The parser does not wrap the errors of single values, such as a date of month 13 or a number without digits.
        raise ValueError(f"is not YAML: {error}") from None


def _written_out(node: yaml.Node | None, sizes: dict[int, float]) -> float:
    """How many values a node has with every alias written out; infinite if it holds itself."""
    if isinstance(node, yaml.ScalarNode) and node.tag != TEXT_TAG and len(node.value) > LONGEST_NUMBER:
        raise ValueError(f"found a number of {len(node.value):,} characters, wanted at most {LONGEST_NUMBER:,}")
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = math.inf
        parts = chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
        sizes[id(node)] = 1 + sum(_written_out(part, sizes) for part in parts)
    return sizes[id(node)]


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


@contextmanager
def atomic_folder(out: Path, replaces: bool = False) -> Iterator[Path]:
    """Within the context, a new folder to write into; it becomes `out` at the end, and nothing is left after an error.

    A link's target is written. Raises `UserError` before that if `out` has files, unless it `replaces` them, or if it
    is no folder.
    """
    target = Path(os.path.realpath(out))
    if os.path.lexists(target) and not target.is_dir():
        raise UserError(f"{out}: exists and is no folder; give another path, or remove this one")
    if target.is_dir() and any(target.iterdir()) and not replaces:
        raise UserError(f"{out}: already exists and is not empty; give a new folder, or remove this one first")
    # Beside what exists of the path, so that an error leaves no new ones above `out`.
    beside = next(folder for folder in target.parents if os.path.lexists(folder))
    # The same name each time, so that what a killed process left is removed; a name may be as long as a disk allows.
    partial = beside / f".{target.name[:100]}{PARTIAL_SUFFIX}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}; {advise(error)}") from None
    try:
        yield partial
        if replaces:
            shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes left in a folder; only for folders that no other process writes to."""
    for path in folder.rglob(f".*-*{PARTIAL_SUFFIX}"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
