"""The other commands: mistakes are reported before heavy imports, and the right processes are started."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from lr2ppo.cli import main
from lr2ppo.distributed import launch
from tests.conftest import REPOSITORY
from tests.helpers.quick import answered_at_once


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("rank gone --frames lr2ppo --labels boat,car", "gone: found no such run under logs"),
        ("rank ppo/x --labels boat", "found --labels; wanted --frames and --labels of one clip"),
        ("rank ppo/x --frames lr2ppo --labels boat,boat", "labels: found 'boat' more than once"),
        ("rank ppo/x --frames nowhere --labels boat", "--frames: found no file or folder nowhere"),
        ("report ppo/gone", "ppo/gone: found no such run under logs"),
        ("report ppo/x --split train", "argument --split: invalid choice: 'train'"),
        ("demo ppo/gone", "ppo/gone: found no such run under logs"),
        ("export ppo/gone out", "ppo/gone: found no such run under logs"),
        ("compare-published gone", "pointwise/gone: found no such run under logs"),
        ("runs --logs nowhere", "--logs: found no folder nowhere"),
        ("convert x.csv --out y --test-share 2", "argument --test-share: found '2', wanted a number from 0 to 1"),
        ("convert x.csv --out y --frames-per-video 0", "--frames-per-video: found 0, wanted at least 1"),
        ("extract --data x --text y", "the following arguments are required: --image"),
        ("benchmark ppo --steps 0", "found --steps 0"),
        ("benchmark ppo --preset nine", "configs/nine/ppo.yaml: no such config file"),
        ("benchmark ppo --model model.widht=8", "unknown key 'model.widht'; did you mean model.width?"),
    ],
)
def test_a_mistake_is_reported_at_once(tmp_path: Path, command: str, message: str) -> None:
    for name in ("lr2ppo", "configs"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    _, errors = answered_at_once(2, *command.split(), folder=tmp_path)
    assert message in errors
    assert errors.count("error:") == 1


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """The commands that the launcher is asked to start."""
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(launch, "start", lambda command, restarts: commands.append(command))
    return commands


def test_the_benchmark_starts_the_processes_that_it_is_given(
    started: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    # Set by the command, and restored after the test.
    monkeypatch.setenv("NPROC", "1")
    words = ["benchmark", "reward", "--preset=mini", "--processes", "2"]
    main(words)
    assert started == [["-m", "lr2ppo", *words]]
    assert launch.count_processes() == 2


def test_extraction_starts_as_many_processes_as_are_asked_for(
    started: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NPROC", "3")
    words = ["extract", "--data=x", "--text=y", "--image=z"]
    main(words)
    assert started == [["-m", "lr2ppo", *words]]
