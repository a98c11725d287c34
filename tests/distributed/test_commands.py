"""Commands run several at a time, after those they need; a failure or a signal stops them all."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from lr2ppo.distributed.commands import Command, run_commands

# Instead of lr2ppo: notes when it starts and ends, and ends with the exit code that it is given.
NOTES = """
import os, signal, sys, time
from pathlib import Path

folder, name, code, *waits = sys.argv[1:]
def stop(number, _):
    Path(folder, f"{name}.stopped").touch()
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
Path(folder, f"{name}.started").write_text(os.environ.get("PLACE", ""))
while not all(Path(folder, wait).exists() for wait in waits):
    time.sleep(0.01)
print("said by", name, flush=True)
sys.exit(int(code))
"""


class Folder:
    """A folder in which commands note that they have started, and wait for each other's notes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.shown: list[tuple[str, int]] = []

    def command(self, name: str, *waits: str, code: int = 0, needs: tuple[str, ...] = ()) -> Command:
        return Command(name, [str(self.path), name, str(code), *waits], frozenset(needs))

    def run(self, *given: Command, places: int = 2) -> None:
        run_commands(given, [{"PLACE": str(place)} for place in range(places)], self._begin)

    def _begin(self, command: Command, ended: int) -> None:
        self.shown.append((command.name, ended))

    def notes(self, what: str = "started") -> set[str]:
        return {note.stem for note in self.path.glob(f"*.{what}")}

    def place(self, name: str) -> str:
        return (self.path / f"{name}.started").read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    package = tmp_path / "package" / "lr2ppo"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(NOTES, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    monkeypatch.chdir(package.parent)
    return Folder(tmp_path)


def test_commands_run_beside_each_other_and_after_those_they_need(folder: Folder) -> None:
    # The first two end only if each sees the other start.
    folder.run(
        folder.command("a", "b.started"),
        folder.command("after", needs=("a", "b", "known before")),
        folder.command("b", "a.started"),
        folder.command("free"),
    )
    assert [name for name, _ in folder.shown[:2]] == ["a", "b"]
    assert {folder.place("a"), folder.place("b")} == {"0", "1"}
    assert dict(folder.shown)["after"] >= 2
    assert folder.notes() == {"a", "b", "after", "free"}


def test_with_one_place_one_runs_after_the_other(folder: Folder) -> None:
    folder.run(*(folder.command(name) for name in "abc"), places=1)
    assert folder.shown == [("a", 0), ("b", 1), ("c", 2)]


def test_a_failure_stops_the_others_and_is_shown(folder: Folder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        folder.run(folder.command("bad", "long.started", code=3), folder.command("long", "never"), folder.command("c"))
    assert ended.value.code == 3
    assert folder.notes("stopped") == {"long"}
    assert folder.notes() == {"bad", "long"}
    assert capsys.readouterr().err.strip() == "said by bad"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_of_them(folder: Folder, number: signal.Signals) -> None:
    stopping = threading.Thread(target=stop_when_started, args=(folder, {"a", "b"}, number))
    stopping.start()
    with pytest.raises(SystemExit) as ended:
        folder.run(folder.command("a", "never"), folder.command("b", "never"), folder.command("c"))
    stopping.join()
    assert ended.value.code == 128 + number
    assert folder.notes("stopped") == folder.notes() == {"a", "b"}


def stop_when_started(folder: Folder, names: set[str], number: signal.Signals) -> None:
    while folder.notes() != names:
        time.sleep(0.01)
    os.kill(os.getpid(), number)
