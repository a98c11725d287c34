"""Broken run folders, of others or of a damaged disk, are listed, read and reported, or refused with one message."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lr2ppo.files import read_json, read_yaml
from lr2ppo.inference.trained import open_trained
from lr2ppo.report.load import find_rows, gather_rows
from lr2ppo.report.page import render_report
from lr2ppo.runs.listing import format_runs, list_runs
from lr2ppo.runs.lookup import best_validation, find_run, find_source_run, read_temperature
from lr2ppo.runs.stages import STAGES
from tests.conftest import write_tiny_world
from tests.helpers.fuzz import Case, damaged, fuzzed, may_refuse, mutated
from tests.helpers.untrained_world import make_untrained_world

FILES = (
    *("config.yaml", "finished.json", "metrics.jsonl", "progress.json", "results.json", "cases.json", "inputs.json"),
    "trained_on.json",
)
NOW = 1.8e9


def write_valid(root: Path) -> None:
    """Write runs of all stages, finished and evaluated, with a file that earlier versions lack."""
    write_tiny_world(root / "data")
    make_untrained_world(root, root / "data")


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("valid")
    write_valid(root)
    return root


def damage_file(path: Path, data: st.DataObject) -> None:
    """Change the bytes of a file, or the values in its JSON or YAML."""
    content = path.read_bytes()
    if path.suffix not in (".json", ".jsonl", ".yaml") or data.draw(st.integers(0, 3)) == 0:
        path.write_bytes(data.draw(damaged(content)))
    elif path.suffix == ".jsonl":
        rows: Any = data.draw(mutated([json.loads(line) for line in content.splitlines()]))
        rows = rows if isinstance(rows, list) else [rows]
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(data.draw(mutated(read_yaml(path)))), encoding="utf-8")
    else:
        path.write_text(json.dumps(data.draw(mutated(read_json(path)))), encoding="utf-8")


def copy_logs(folder: Path, valid: Path) -> Path:
    shutil.rmtree(folder / "logs", ignore_errors=True)
    return Path(shutil.copytree(valid / "logs", folder / "logs"))


def draw_damage(logs: Path, data: st.DataObject) -> Path:
    """Damage one or two files of a run, and return its folder."""
    run = logs / data.draw(st.sampled_from(list(STAGES))) / "one"
    for name in data.draw(st.lists(st.sampled_from([*FILES, "best/config.json"]), min_size=1, max_size=2, unique=True)):
        if (run / name).is_file():
            damage_file(run / name, data)
    return run


def any_run_is_listed(folder: Path, valid: Path, data: st.DataObject) -> None:
    logs = copy_logs(folder, valid)
    run = draw_damage(logs, data)
    assert len(format_runs(list_runs(logs), NOW)) == 1 + len(STAGES)
    with may_refuse(logs):
        find_run(f"{run.parent.name}/one", STAGES, logs)
        find_source_run("newest", (run.parent.name,), "mini", logs)
        best_validation(run)
        read_temperature(run)
        open_trained(run, logs)


def any_run_is_reported(folder: Path, valid: Path, data: st.DataObject) -> None:
    logs = copy_logs(folder, valid)
    run = draw_damage(logs, data)
    with may_refuse(logs):
        page = render_report(gather_rows(find_rows([str(run)], logs), "test"), "test")
        assert page.rstrip().endswith("</html>")


CASES: dict[str, Case] = {"runs listed": any_run_is_listed, "runs reported": any_run_is_reported}


@pytest.mark.slow
@fuzzed(200)
@given(data=st.data())
def test_runs_of_any_content_are_listed_and_found(tmp_path: Path, valid: Path, data: st.DataObject) -> None:
    any_run_is_listed(tmp_path, valid, data)


@pytest.mark.slow
@fuzzed(40)
@given(data=st.data())
def test_runs_of_any_content_are_reported(tmp_path: Path, valid: Path, data: st.DataObject) -> None:
    any_run_is_reported(tmp_path, valid, data)
