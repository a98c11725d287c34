"""The files that the page may open: those uploaded to its folder, for a while, and the frames of its examples."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

from lr2ppo.demo.inputs import Example
from lr2ppo.errors import UserError
from lr2ppo.files import check_regular

MINUTES_KEPT = 60
# Of all uploads together.
MOST_STORED = 2 * 2**30
UNKNOWN = (
    "A frame is no file of this page, or it was uploaded more than "
    f"{MINUTES_KEPT} minutes ago: drop the frames into the page again."
)


class Uploads:
    """The folder of uploads, and what may be opened in and beside it."""

    def __init__(self, folder: Path, examples: Sequence[Example] = ()) -> None:
        self.folder = folder.resolve()
        self._shown = {os.path.realpath(frame) for example in examples for frame in example.frames}
        self._stays: set[Path] = set()

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

    def has_room(self, coming: int) -> bool:
        """Whether as many bytes may be stored in addition."""
        return coming + sum(size for _, size in self._files().values()) <= MOST_STORED

    def remove_old(self, seconds: float = 60 * MINUTES_KEPT) -> None:
        """Remove files, and folders left empty, that have been here for longer."""
        latest = time.time() - seconds
        for path, (since, _) in self._files().items():
            if since <= latest and path not in self._stays:
                path.unlink(missing_ok=True)
        for folder in self.folder.iterdir():
            if folder.is_dir() and folder.stat().st_ctime <= latest and not any(folder.iterdir()):
                folder.rmdir()

    def remove_unfinished(self) -> None:
        """Remove what interrupted uploads leave: each finished one is in a separate folder."""
        for path in self.folder.iterdir():
            if path.is_file() and path not in self._stays:
                path.unlink(missing_ok=True)

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
