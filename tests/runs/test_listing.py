"""The list of runs shows the state of each, in any state of its folder, and changes nothing."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from lr2ppo.cli import main
from lr2ppo.config.schema import ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.weights import save_model
from lr2ppo.runs import listing as runs
from lr2ppo.runs.listing import RunStatus, format_runs, list_runs, read_status
from lr2ppo.runs.lock import is_locked, lock_run
from tests.conftest import REPOSITORY

HOLD = "import sys, pathlib; from lr2ppo.runs.lock import lock_run; lock_run(pathlib.Path(sys.argv[1])); "
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}


def make_run(logs: Path, stage: str, name: str, **files: object) -> Path:
    """Write a run's folder with a config, two evaluations, the better one first, and further JSON files."""
    folder = logs / stage / name
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"stage": stage, "preset": "mini"}), encoding="utf-8")
    metric = "pair_accuracy" if stage == "reward" else "ndcg"
    rows = [{"step": step, f"validation/{metric}": value} for step, value in ((10, 0.75), (20, 0.5))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start another process that locks a run's folder; it ends at the latest with this context."""
    command = [sys.executable, "-c", HOLD + "print('held', flush=True); input()", str(folder)]
    process = subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def status(folder: Path) -> RunStatus:
    found = read_status(folder)
    assert found is not None
    return found


def test_a_run_is_finished_then_evaluated_and_shows_its_best(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "pointwise", "a", finished={"steps": 20, "best_step": 10})
    found = status(folder)
    assert (found.state, found.step, found.steps) == ("finished", 20, 20)
    assert (found.metric, found.best, found.best_step) == ("ndcg", 0.75, 10)
    (folder / "results.json").write_text('{"test": {}, "val": {}}', encoding="utf-8")
    assert status(folder).state == "evaluated"
    (line,) = format_runs([status(folder)], time.time())[1:]
    assert re.fullmatch(r"pointwise +a +20/20 +100 % +ndcg 0\.7500 at 10 +\d+ s +\d+ s +evaluated: test, val", line)


def test_a_run_is_running_only_while_the_process_that_keeps_it_lives(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "reward", "a", progress={"step": 30, "steps": 40, "seconds_left": 75.0})
    (folder / "checkpoints" / "step-0000020-00000").mkdir(parents=True)
    (folder / "checkpoints" / "step-0000025-00003").mkdir()
    with holder(folder) as process:
        found = status(folder)
        assert (found.state, found.step, found.steps, found.goes_on_from) == ("running", 30, 40, None)
        assert "running, 1 min left" in format_runs([found], time.time())[1]
        process.kill()
        process.wait()
        found = status(folder)
        assert (found.state, found.goes_on_from) == ("stopped", 25)
        assert "stopped, resumes from 25" in format_runs([found], time.time())[1]
    (folder / "checkpoints" / "step-0000035-00000").mkdir()
    assert (status(folder).step, status(folder).goes_on_from) == (35, 35)


def test_querying_a_lock_neither_takes_nor_releases_it(tmp_path: Path) -> None:
    other, own = tmp_path / "other", tmp_path / "own"
    with holder(other):
        assert is_locked(other)
        with pytest.raises(UserError, match="another run of this name is running"):
            lock_run(other)
    assert not is_locked(other)
    lock_run(own)
    assert is_locked(own)
    taken = subprocess.run([sys.executable, "-c", HOLD, str(own)], env=ENVIRONMENT, capture_output=True, text=True)
    assert "another run of this name is running" in taken.stderr


def test_a_run_that_is_checking_its_inputs_is_listed(tmp_path: Path) -> None:
    (tmp_path / "ppo").mkdir()
    (tmp_path / "ppo" / ".gone.lock").write_text("{}", encoding="utf-8")
    with holder(tmp_path / "ppo" / "early"):
        assert [(run.name, run.state, run.step) for run in list_runs(tmp_path)] == [("early", "running", None)]


@pytest.mark.parametrize(
    ("file", "content", "fault"),
    [
        ("config.yaml", "stage: [", "config.yaml: cannot be read"),
        ("finished.json", '{"ste', "finished.json is not JSON"),
        ("progress.json", "[1]", "progress.json holds no mapping"),
        ("results.json", "\0", "results.json is not JSON"),
        ("metrics.jsonl", '{"step": 1\n{"step": 2}\n', "metrics.jsonl, line 1, is not JSON"),
        ("metrics.jsonl", '{"validation/ndcg": 1}\n', "metrics.jsonl, line 1, has no step"),
        ("metrics.jsonl", "3\n", "metrics.jsonl, line 1, has no step"),
    ],
)
def test_a_run_with_a_damaged_file_is_listed_with_what_is_wrong(
    tmp_path: Path, file: str, content: str, fault: str
) -> None:
    folder = make_run(tmp_path, "ppo", "hurt", finished={"steps": 20, "best_step": 10})
    make_run(tmp_path, "ppo", "sound")
    (folder / file).write_text(content, encoding="utf-8")
    states = {run.name: run.state for run in list_runs(tmp_path)}
    assert states == {"hurt": "damaged", "sound": "stopped"}
    found = status(folder)
    assert fault in str(found.fault)
    assert len(format_runs([found], time.time())) == 2


def test_a_row_that_is_just_being_written_is_no_damage(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "ppo", "a")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 30, "validation/ndcg": 0.9')
    assert (status(folder).state, status(folder).step, status(folder).best) == ("stopped", 20, 0.75)


def test_converted_weights_are_listed_and_folders_of_nothing_are_not(tmp_path: Path) -> None:
    shape = ModelConfig(head="pooled", attention="scaled", width=8, heads=2, dropout=0.0)
    save_model(tmp_path / "pointwise" / "published" / "best", RelevanceRanker(shape))
    for nothing in ("empty", ".hidden.removed-1"):
        (tmp_path / "pointwise" / nothing).mkdir()
    (tmp_path / "cache").mkdir()
    assert [(run.name, run.state) for run in list_runs(tmp_path)] == [("published", "converted")]


def test_runs_are_listed_by_stage_the_newest_first(tmp_path: Path) -> None:
    for age, (stage, name) in enumerate([("ppo", "c"), ("pointwise", "new"), ("reward", "b"), ("pointwise", "old")]):
        folder = make_run(tmp_path, stage, name)
        for path in folder.iterdir():
            os.utime(path, (1e9 - age, 1e9 - age))
    assert [(run.stage, run.name) for run in list_runs(tmp_path)] == [
        *(("pointwise", "new"), ("pointwise", "old"), ("reward", "b"), ("ppo", "c"))
    ]


def test_the_command_prints_json_a_table_or_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["runs", "--logs", str(tmp_path)])
    assert "start one with: sh pointwise.sh NAME" in capsys.readouterr().out
    make_run(tmp_path, "reward", "a")
    main(["runs", "--logs", str(tmp_path)])
    heading, line = capsys.readouterr().out.splitlines()
    assert line.index("pair_accuracy 0.7500 at 10") == heading.index("best")
    main(["runs", "--logs", str(tmp_path), "--json"])
    (found,) = json.loads(capsys.readouterr().out)
    assert found["preset"] == "mini"
    for wrong in (["--logs", str(tmp_path / "gone")], ["--logs", str(tmp_path), "--watch", "0"], ["--watch", "--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["runs", *wrong])
        assert ended.value.code == 2


def test_a_watched_table_is_redrawn_in_place_and_left_on_the_screen(tmp_path: Path) -> None:
    make_run(tmp_path, "reward", "a")
    master, slave = pty.openpty()
    arguments = [sys.executable, "-m", "lr2ppo", "runs", "--logs", str(tmp_path), "--watch", "0.1"]
    process = subprocess.Popen(arguments, env=ENVIRONMENT, stdout=slave, stderr=slave)
    os.close(slave)
    shown = b""
    while shown.count(runs.HOME.encode()) < 3:
        shown += os.read(master, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    shown += os.read(master, 65536)
    os.close(master)
    before, after = shown.decode().split(runs.LEAVE)
    assert before.startswith(runs.ENTER)
    assert all("pair_accuracy 0.7500" in screen for screen in before.split(runs.HOME)[1:-1])
    assert after.count("pair_accuracy 0.7500") == 1
