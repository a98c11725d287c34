"""Read and write files: only regular ones, and each is complete before it gets its name."""

import errno
import fcntl
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from glob import glob
from io import BufferedReader, FileIO, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError

from lr2ppo.errors import UserError, advise, raise_faults, show

# JSON and the command line can hold lone surrogates and null characters; files and file names cannot.
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
# Control characters and the ends of lines that YAML knows: a name or a setting is a text of one line.
CONTROL = re.compile("[\0-\x1f\x7f-\x9f\u2028\u2029]")
# Bytes of a YAML file, and values it stands for: far more than any config has, and read within seconds.
MOST_YAML = 2**18
# Digits of longer numbers take a time that grows with their square.
LONGEST_NUMBER = 1000
TEXT_TAG, INTEGER_TAG, FLOAT_TAG = (f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float"))
# A number as people write it, which a text may hold.
DECIMAL = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
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
    stat.S_IFLNK: "a link, which may lead out of its folder",
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


def check_output(path: Path) -> Path:
    """Return the file to write for a path that a user typed, which may be a link: then its target.

    Raises `UserError` if it exists and is no regular file, which writing would replace or hang on.
    """
    _check_writable(path, os.stat)
    return Path(os.path.realpath(path))


def check_inside(path: Path) -> None:
    """Raise `UserError` if a file to write inside a folder exists and is a link, or no regular file.

    The folder may come from someone else, and a link in it may lead to any file of the user.
    """
    _check_writable(path, os.lstat)


def check_folder_inside(path: Path) -> None:
    """Raise `UserError` if a folder to write into, inside another, exists and is a link, or no folder."""
    if path.is_symlink():
        raise UserError(f"{path}: is a link to {os.readlink(path)}, wanted a folder; put what it leads to in its place")
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{path}: exists and is no folder; remove it")


def _check_writable(path: Path, status: Callable[[Path], os.stat_result]) -> None:
    try:
        check_name(path)
        _require_regular(path, status(path).st_mode)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; {advise(error)}") from None


def link_fault(path: Path) -> str | None:
    """Why what is in a folder may be somewhere else too: it is a link, or one of several names of a file."""
    if path.is_symlink():
        return f"is a link to {os.readlink(path)}"
    return _hard_link_fault(path.lstat()) if path.exists() else None


def read_own_json(path: Path) -> Any:
    """Read a JSON record of a run's folder as `read_json`; raises ValueError if it is a link.

    The folder of someone else could show any file of the user by a link.
    """
    refuse_link(path)
    return read_json(path)


def refuse_link(path: Path) -> None:
    """Raise ValueError if a record in a run's folder is a link."""
    if path.is_symlink():
        raise ValueError(f"{path.name} is a link to {os.readlink(path)}, wanted a file")


def model_files(folder: Path) -> list[Path]:
    """The folder of a model, and its files: see `models.weights.save_model`."""
    return [folder, folder / "config.json", folder / WEIGHTS_FILE]


def require_own(paths: Iterable[Path]) -> None:
    """Raise `UserError` if a folder or a file of a model is a link.

    In the folder of someone else it could lead to any weights of the user, which would then be handed on.
    """
    for path in paths:
        if fault := link_fault(path):
            raise UserError(f"{path}: {fault}; a model's files are its own, so put a copy of it in its place")


def check_no_links(folder: Path) -> None:
    """Raise `UserError` if there are links inside a folder of which any file may be written; it may be one itself.

    Raises OSError if a folder in it cannot be listed: it can still be written to, through links that nobody sees.
    """
    tree = os.walk(folder, onerror=_refuse_unlisted)
    paths = [Path(place, name) for place, folders, files in tree for name in sorted(folders + files)]
    found = {path: link_fault(path) for path in paths}
    faults = [f"{path.relative_to(folder)}: {fault}" for path, fault in found.items() if fault is not None]
    raise_faults(folder, faults, "nothing outside the folder is written; put what they lead to in their places")


def _refuse_unlisted(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


class _Reader(BufferedReader):
    """A file that takes no memory for more bytes than it has, whatever length its damaged content names."""

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, os.fstat(self.fileno()).st_size - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))


def open_regular(path: Path) -> BufferedReader:
    """Open a file for reading; raises OSError if it is missing or no regular file, without waiting for a pipe."""
    check_name(path)
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _require_regular(path, os.fstat(handle).st_mode)
    except OSError:
        os.close(handle)
        raise
    return _Reader(FileIO(handle))


def open_to_append(path: Path) -> TextIOWrapper:
    """Open a text file inside a folder to read and append, without waiting for a pipe.

    Raises `UserError` as `check_inside` and `check_one_name`, OSError if it cannot be opened.
    """
    check_inside(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    file = os.fdopen(os.open(path, flags, 0o666), "a+", encoding="utf-8")
    try:
        check_one_name(path, os.fstat(file.fileno()))
    except UserError:
        file.close()
        raise
    return file


def check_one_name(path: Path, status: os.stat_result) -> None:
    """Raise `UserError` if a file to change in place, inside a folder, has other names: they may be anywhere.

    A file that is written under another name and then renamed needs no such check.
    """
    if fault := _hard_link_fault(status):
        raise UserError(f"{path}: {fault}; nothing outside the folder is written, so put a copy of it in its place")


def _hard_link_fault(status: os.stat_result) -> str | None:
    is_shared = stat.S_ISREG(status.st_mode) and status.st_nlink > 1
    return f"is a hard link, one of {status.st_nlink} names of a file" if is_shared else None


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotAFileError(path, mode)


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark; raises OSError as `open_regular`, UnicodeDecodeError."""
    with open_regular(path) as file:
        return file.read().decode("utf-8-sig")


def read_json(path: Path) -> Any:
    """Read a JSON file; raises OSError as `open_regular`, ValueError and RecursionError as `parse_json`."""
    return parse_json(read_text(path))


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file; raises `UserError` if it is not one."""
    try:
        content = read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a {type(content).__name__}, wanted a JSON object")
    return content


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text; raises ValueError if it is not JSON or has a key twice, RecursionError if too deep."""
    return json.loads(text, object_pairs_hook=_each_key_once)


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"found the key {show(twice)} twice in one object, wanted it once")
    return found


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


class _Loader(yaml.SafeLoader):
    """Reads as numbers only what YAML 1.1 and 1.2 agree on: 010, 1_0 and 1:30 stay texts. Refuses a key given twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = Counter((key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if len(keys) < keys.total():
            (_, twice), _ = keys.most_common(1)[0]
            raise ValueError(f"found the key {show(twice)} twice in one section, wanted it once")
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in known if tag not in (INTEGER_TAG, FLOAT_TAG)]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(INTEGER_TAG, re.compile("[-+]?(?:0|[1-9][0-9]*|0x[0-9a-fA-F]+)$"), [*"-+0123456789"])
_Loader.add_implicit_resolver(
    FLOAT_TAG,
    re.compile(r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?$|[-+]?\.(?:inf|Inf|INF)$|\.(?:nan|NaN|NAN)$"),
    [*"-+0123456789."],
)


def parse_yaml(text: str) -> Any:
    """Return the plain values of a YAML text.

    Raises ValueError if it is not YAML, has a key twice, is too deep or has aliases for too many values.
    """
    try:
        loader = _Loader(text)
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
    """Write a file under a temporary name with `write(path)`, then rename it.

    Raises `UserError` if it cannot be written: the disk is full, read-only, or gone, or the path names a link or no
    regular file. For a path that a user typed, write the file that `check_output` returns.
    """
    try:
        check_name(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        check_inside(path)
        # A name may be as long as the file system allows; the temporary one must not be longer.
        partial = path.with_name(f".{path.name[:100]}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
        # With the rights of any new file of this user, or those of the file that it replaces.
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if path.exists():
            shutil.copymode(path, partial)
        try:
            write(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be written: {reason}; earlier files are intact; {advise(error)}") from None


def check_no_link(folder: Path) -> None:
    """Raise `UserError` if a folder that is to be replaced is a link, which may lead to any folder of the user."""
    if folder.is_symlink():
        raise UserError(f"{folder}: is a link to {os.readlink(folder)}, wanted a folder to replace; remove the link")


@contextmanager
def atomic_folder(out: Path, replaces: bool = False) -> Iterator[Path]:
    """Within the context, a new folder to write into; it becomes `out` at the end, and nothing is left after an error.

    A link's target is written. Raises `UserError` before that if `out` has files, unless it `replaces` them, if it is
    no folder, or if another process writes it now. Nothing is replaced through a link.
    """
    if replaces:
        check_no_link(out)
    target = Path(os.path.realpath(out))
    # Beside what exists of the path, so that an error leaves no new ones above `out`.
    beside = next(folder for folder in target.parents if os.path.lexists(folder))
    # The same name each time, so that what a killed process left is removed; a name may be as long as a disk allows.
    own = hashlib.sha256(os.fsencode(target)).hexdigest()[:12]
    partial = beside / f".{target.name[:100]}-{own}{PARTIAL_SUFFIX}"
    try:
        lock = _lock_new_folder(partial)
    except BlockingIOError:
        raise UserError(f"{out}: another process is writing it; wait for it, or give another path") from None
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror}; {advise(error)}") from None
    try:
        # Only now: the process that held the lock before may have just written it.
        if os.path.lexists(target) and not target.is_dir():
            raise UserError(f"{out}: exists and is no folder; give another path, or remove this one")
        if target.is_dir() and any(target.iterdir()) and not replaces:
            raise UserError(f"{out}: already exists and is not empty; give a new folder, or remove this one first")
        yield partial
        if replaces:
            shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


def _lock_new_folder(folder: Path) -> int:
    """Make a folder, empty also if a killed process left it, and return its handle, which keeps other processes out.

    Raises BlockingIOError if another process has locked it, OSError if it cannot be made.
    """
    while True:
        folder.mkdir(exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise
            except OSError:
                # Some network disks have no such locks.
                pass
            # Unless the process that had locked it has renamed or removed it since.
            if folder.exists() and os.path.samestat(folder.lstat(), os.fstat(handle)):
                for left in folder.iterdir():
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def user_cache() -> Path | None:
    """The user's own folder for what can be computed again: `$XDG_CACHE_HOME/lr2ppo`, by default in `~/.cache`.

    None if the user has no home.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    # As its specification says, a relative path is ignored.
    place = given if os.path.isabs(given) else os.path.expanduser("~/.cache")
    return Path(place, "lr2ppo") if os.path.isabs(place) else None


def remove_partial_files(folder: Path) -> None:
    """Remove what killed processes left in a folder; only for folders that no other process writes to."""
    for path in folder.rglob(f".*-*{PARTIAL_SUFFIX}"):
        if path.is_file():
            path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; half characters, which no file can hold, become question marks."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="replace"))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1) + "\n")
