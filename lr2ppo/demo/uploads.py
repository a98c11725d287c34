"""The files that the page may open: those uploaded to its folder, for a while, and the frames of its examples."""

import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lr2ppo.demo.inputs import Example
from lr2ppo.errors import UserError
from lr2ppo.files import check_regular

MINUTES_KEPT = 60
# Of all uploads together.
MOST_STORED, MOST_FILES_STORED = 2 * 2**30, 5000
# An upload holds its files open until it is complete; of all uploads together. The rest of the process opens others.
MOST_OPEN, OTHERS_OPEN, FEWEST_OPEN = 1000, 400, 100
UNKNOWN = (
    "A frame is no file of this page, or it was uploaded more than "
    f"{MINUTES_KEPT} minutes ago: drop the frames into the page again."
)


class Amount(NamedTuple):
    """How much is stored, or came."""

    bytes: int = 0
    files: int = 0

    def plus(self, other: "Amount") -> "Amount":
        return Amount(self.bytes + other.bytes, self.files + other.files)

    def minus(self, other: "Amount") -> "Amount":
        return Amount(self.bytes - other.bytes, self.files - other.files)


def raise_open_files() -> int:
    """Raise this process's limit of open files to what the page needs, or as far as allowed.

    Returns how many files uploads may hold open at once; raises `UserError` if that is not enough for one upload.
    """
    now, highest = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN + OTHERS_OPEN
    if now == resource.RLIM_INFINITY:
        return MOST_OPEN
    if now < wanted:
        now = wanted if highest == resource.RLIM_INFINITY else min(wanted, highest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (now, highest))
    least = FEWEST_OPEN + OTHERS_OPEN
    if now < least:
        raise UserError(f"ulimit -n: found {now} open files, wanted at least {least}; run: ulimit -n {least}")
    return min(MOST_OPEN, now - OTHERS_OPEN)


class Uploads:
    """The folder of uploads, and what may be opened in and beside it.

    What is stored is counted while it comes, and looked up in the folder only when old files are removed.
    """

    def __init__(self, folder: Path, examples: Sequence[Example] = ()) -> None:
        self.folder = folder.resolve()
        self._shown = {os.path.realpath(frame) for example in examples for frame in example.frames}
        self._stays: set[Path] = set()
        self.most_open = raise_open_files()
        # Since the start, in finished uploads; of that, what was gone at the latest look; what broken-off ones left.
        self._came, self._gone, self._unfinished = Amount(), Amount(), Amount()

    def keep_present(self) -> None:
        """Keep the files of now, such as the page's icons, as long as the folder."""
        self._stays = set(self._files())

    def owns(self, path: str) -> bool:
        """Whether a path names an upload or a frame of an example, both as it is written and with links followed."""
        # Others are not looked up: not even the time that takes tells whether they exist.
        if not self._is_within(path) or os.path.normpath(path) != path:
            return False
        try:
            check_regular(Path(path))
            return self._is_within(os.path.realpath(path))
        except (OSError, ValueError):
            return False

    def require(self, paths: Sequence[str]) -> None:
        """Raise `UserError`, the same for every other path, unless all are the page's own files."""
        if not all(self.owns(path) for path in paths):
            raise UserError(UNKNOWN)

    def _is_within(self, path: str) -> bool:
        return path in self._shown or path.startswith(f"{self.folder}{os.sep}")

    def count(self, size: int, files: int, finished: bool) -> None:
        """Count what came with an upload, which may have been broken off."""
        came = Amount(size, files)
        if finished:
            self._came = self._came.plus(came)
        else:
            self._unfinished = self._unfinished.plus(came)

    def has_room(self, size: int, files: int) -> bool:
        """Whether as many bytes and files may be stored in addition."""
        stored = self._came.minus(self._gone).plus(self._unfinished).plus(Amount(size, files))
        return stored.bytes <= MOST_STORED and stored.files <= MOST_FILES_STORED

    @property
    def has_unfinished(self) -> bool:
        """Whether uploads were broken off since `remove_unfinished`."""
        return self._unfinished != Amount()

    def remove_old(self, seconds: float = 60 * MINUTES_KEPT) -> None:
        """Remove files, and folders left empty, that have been here for longer; count what is left."""
        latest, came, left = time.time() - seconds, self._came, Amount()
        for path, (since, size) in self._files().items():
            if since <= latest and path not in self._stays:
                path.unlink(missing_ok=True)
            else:
                left = left.plus(Amount(size, 1))
        self._gone = came.minus(left)
        for folder in self.folder.iterdir():
            if folder.is_dir() and folder.stat().st_ctime <= latest and not any(folder.iterdir()):
                folder.rmdir()

    def remove_unfinished(self) -> None:
        """Remove what interrupted uploads leave: each finished one is in a separate folder."""
        for path in self.folder.iterdir():
            if path.is_file() and path not in self._stays:
                path.unlink(missing_ok=True)
        self._unfinished = Amount()

    def _files(self) -> dict[Path, tuple[float, int]]:
        """Since when every file has been here, whatever its content's date, and its bytes."""
        found = {}
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                try:
                    status = path.lstat()
                except FileNotFoundError:
                    continue
                found[path] = (status.st_ctime, status.st_size)
        return found
