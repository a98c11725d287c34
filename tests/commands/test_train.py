"""`lr2ppo train`: mistakes are reported at once, and the stage is trained here or in launched processes."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lr2ppo.cli import main
from lr2ppo.distributed import launch
from lr2ppo.runs.stages import STAGES
from lr2ppo.stages import pointwise
from tests.conftest import REPOSITORY
from tests.helpers.quick import answered_at_once

MINI = "configs/mini/pointwise.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_a_misspelt_key_is_answered_with_the_nearest(stage: str) -> None:
    config = f"configs/mini/{stage}.yaml"
    _, errors = answered_at_once(2, "train", stage, "--config", config, "name=x", "train.epocs=3")
    assert errors == "\nerror: train.epocs=3: unknown key 'train.epocs'; did you mean train.epochs?\n"


@pytest.mark.parametrize("script", [stage.script for stage in STAGES.values()])
def test_a_script_runs_the_code_beside_it_wherever_cdpath_leads(script: str, tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "copy").symlink_to(REPOSITORY)
    decoy = tmp_path / "elsewhere" / "copy" / "scripts"
    decoy.mkdir(parents=True)
    (decoy / "launch.sh").write_text("echo decoy; exit 0\n", encoding="utf-8")
    environment = os.environ | {"CDPATH": str(tmp_path / "elsewhere")}
    command = ["sh", f"copy/{script}"]
    found = subprocess.run(command, cwd=tmp_path / "place", env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, "")
    assert "usage:" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pointwise", "--config", MINI, "train.epochs=many"], "train.epochs: found 'many'"),
        (["pointwise", "--config", "configs/nine/pointwise.yaml"], "configs/nine/pointwise.yaml: no such config file"),
        (["ppo", "--config", MINI], "stage: found 'pointwise', wanted 'ppo'"),
        (["pointwise", "name=x"], "--config: is missing; give one, such as --config configs/mini/pointwise.yaml"),
        (["pointwize", "--config", MINI], "argument STAGE: invalid choice: 'pointwize'"),
        (["pointwise", "--config", MINI, "--max-restarts", "-1"], "--max-restarts: found '-1', wanted a whole number"),
        (["pointwise", "--config", MINI, "--max-restarts", "²"], "--max-restarts: found '²', wanted a whole number"),
        (["pointwise", "--config", MINI, "--max-restarts"], "--max-restarts: expected one argument"),
    ],
)
def test_a_mistake_is_reported_at_once(arguments: list[str], message: str) -> None:
    _, errors = answered_at_once(2, "train", *arguments)
    assert message in errors
    assert errors.count("error:") == 1


def test_the_config_is_shown_at_once() -> None:
    printed, _ = answered_at_once(0, "train", "pointwise", "--config", MINI, "--print-config", "train.epochs=3")
    assert "preset: mini" in printed
    assert "epochs: 3" in printed


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Sequence[str], int]]:
    """The commands that the launcher is asked to start, with their number of restarts."""
    calls: list[tuple[Sequence[str], int]] = []
    monkeypatch.setattr(launch, "start", lambda command, restarts: calls.append((command, restarts)))
    return calls


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls that train stage 1 in this process."""
    calls: list[Any] = []
    monkeypatch.setattr(pointwise, "train", lambda *arguments: calls.append(arguments))
    return calls


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    config = str(REPOSITORY / MINI)
    return ["train", "pointwise", "--config", config, "name=x", f"logs={tmp_path}", "device=cpu", "--fresh"]


def test_one_process_trains_by_itself(words: list[str], started: list[Any], trained: list[Any]) -> None:
    main(words)
    ((config, processes, fresh),) = trained
    assert (config.name, processes.world_size, fresh) == ("x", 1, True)
    assert not started


@pytest.mark.parametrize(
    ("variables", "restarts", "more"),
    [({"NPROC": "2"}, 0, []), ({}, 2, ["--max-restarts", "2"]), ({"NNODES": "2"}, 0, [])],
)
def test_several_processes_or_ones_to_start_again_are_given_the_same_command(
    words: list[str],
    started: list[Any],
    trained: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    restarts: int,
    more: list[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    main([*words, *more])
    assert started == [(["-m", "lr2ppo", *words, *more], restarts)]
    assert not trained
    # What one of these processes does.
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    main([*words, *more])
    assert len(started) == len(trained) == 1
