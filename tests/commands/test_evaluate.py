"""`lr2ppo evaluate`: mistakes are reported at once, and a table's overrides may follow its runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lr2ppo.cli import main
from lr2ppo.distributed import launch
from lr2ppo.stages import evaluate
from lr2ppo.tensors import read_tensors, write_tensors
from tests.conftest import REPOSITORY
from tests.helpers.quick import answered_at_once
from tests.helpers.untrained_world import make_untrained_world

CONFIG = str(REPOSITORY / "configs" / "mini" / "evaluate.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["name=ppo/gone"], "ppo/gone: found no such run under"),
        (["--table", "ppo/one", "ppo/one,ppo/gone"], "ppo/gone: found no such run under"),
        ([], "name: is missing"),
        (["--table", "split=val"], "--table: found no run, wanted evaluated runs"),
        (["name=ppo/one", "--csv", "table.csv"], "--csv: is written of a table; add --table RUN RUN"),
        (["--table", "ppo/one", "--csv", "."], ".: is a folder, wanted a regular file"),
        (["name=ppo/one", "splt=val"], "unknown key 'splt'; did you mean split?"),
    ],
)
def test_a_mistake_is_reported_at_once(tmp_path: Path, arguments: list[str], message: str) -> None:
    make_run(tmp_path, "ppo", "one")
    _, errors = answered_at_once(2, "evaluate", "--config", CONFIG, f"logs={tmp_path}", *arguments)
    assert message in errors


def make_run(logs: Path, stage: str, name: str) -> None:
    """Create a minimal run folder that `find_run` accepts."""
    folder = logs / stage / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"stage: {stage}\n", encoding="utf-8")


def test_overrides_after_the_runs_of_a_table_are_not_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in ("pointwise", "ppo"):
        make_run(tmp_path, stage, "one")
    shown: list[tuple[Sequence[str], Any, Path]] = []
    monkeypatch.setattr(evaluate, "show_table", lambda *arguments: shown.append(arguments))
    options = ["--csv", "table.csv", "split=val", f"logs={tmp_path}"]
    main(["evaluate", "--config", CONFIG, "--table", "pointwise/one", "ppo/one", *options])
    ((runs, config, csv),) = shown
    assert (runs, config.split, csv) == (["pointwise/one", "ppo/one"], "val", Path("table.csv"))


def test_the_path_of_a_run_may_hold_an_equals_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = tmp_path / "width=64"
    make_run(logs, "ppo", "one")
    shown: list[tuple[Sequence[str], Any, Path]] = []
    monkeypatch.setattr(evaluate, "show_table", lambda *arguments: shown.append(arguments))
    run = str(logs / "ppo" / "one")
    main(["evaluate", "--config", CONFIG, "--table", run, "split=val"])
    assert [(runs, config.split) for runs, config, _ in shown] == [([run], "val")]


def test_several_processes_are_given_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path, "ppo", "one")
    words = ["evaluate", "--config", CONFIG, "name=ppo/one", f"logs={tmp_path}"]
    started: list[Sequence[str]] = []
    monkeypatch.setattr(launch, "start", lambda command, restarts: started.append(command))
    monkeypatch.setenv("NPROC", "2")
    main(words)
    assert started == [["-m", "lr2ppo", *words]]


def test_scores_that_are_not_finite_are_refused_before_anything_is_written_or_printed(
    tiny_world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_untrained_world(tmp_path, tiny_world)
    folder = tmp_path / "logs" / "pointwise" / "one"
    weights = read_tensors(folder / "best" / "model.safetensors")
    write_tensors(folder / "best" / "model.safetensors", {name: 1e30 * tensor for name, tensor in weights.items()})
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", "--config", CONFIG, f"name={folder}", "device=cpu", "workers=0"])
    printed, errors = capfd.readouterr()
    assert ended.value.code == 2, errors
    assert "clip test-0: not all are finite" in errors
    assert printed == ""
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
