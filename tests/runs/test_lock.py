"""A run's lock: what else may have its name, and disks that cannot lock."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lr2ppo.errors import UserError, path_errors_as_user_errors
from lr2ppo.runs.listing import list_runs
from lr2ppo.runs.lock import lock_path, lock_run

MAKERS: dict[str, Callable[[Path], object]] = {
    "a folder": Path.mkdir,
    "a named pipe": os.mkfifo,
    "levels of symbolic links": lambda path: path.symlink_to(path),
    "a link to another file": lambda path: path.symlink_to(__file__),
}


@pytest.mark.parametrize("what", MAKERS)
def test_what_has_the_name_of_a_lock_is_refused_and_does_not_stop_the_list(tmp_path: Path, what: str) -> None:
    run = tmp_path / "ppo" / "mine"
    lock_path(run).parent.mkdir()
    MAKERS[what](lock_path(run))
    assert list_runs(tmp_path) == []
    with pytest.raises(UserError, match=str(lock_path(run))), path_errors_as_user_errors():
        lock_run(run)


def test_a_disk_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(UserError, match=r"\.mine\.lock: cannot be locked: No locks available; .* logs=FOLDER on"):
        lock_run(tmp_path / "ppo" / "mine")


def test_a_file_in_place_of_a_runs_folder_does_not_stop_the_list(tmp_path: Path) -> None:
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / "mine").write_bytes(b"")
    (tmp_path / "reward").write_bytes(b"")
    (tmp_path / "ppo" / "loop").symlink_to(tmp_path / "ppo" / "loop")
    assert list_runs(tmp_path) == []
