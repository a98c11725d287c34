"""What a run shows during training: the progress line, logged lines, and TensorBoard."""

import fcntl
import json
import os
import pty
import random
import struct
import sys
import termios
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from lr2ppo.distributed.processes import Processes
from lr2ppo.evaluation.scoring import Evaluation
from lr2ppo.runs.stages import LR2PPO
from lr2ppo.training.log import IMAGE_INTERVALS
from lr2ppo.training.progress import MAX_COLUMNS, bar_format
from lr2ppo.training.run import TrainingRun
from lr2ppo.training.tensorboard import TensorBoard
from tests.evaluation.test_pictures import CLIP, SCORES
from tests.stages.test_stages import Overrides, rows, run_pointwise, run_ppo, run_reward

# Both are untyped.
EventAccumulator: Any = import_module("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
HParamsPluginData: Any = import_module("tensorboard.plugins.hparams.plugin_data_pb2").HParamsPluginData


class Terminal:
    """A pseudo-terminal of a given width in place of standard output and error."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._stream = os.fdopen(slave, "w")
        self._read = b""
        self._reader = threading.Thread(target=self._collect)
        self._reader.start()
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, self._stream)

    def _collect(self) -> None:
        # Reading ends with an error once the other end is closed.
        while chunk := self._read_some():
            self._read += chunk

    def _read_some(self) -> bytes:
        try:
            return os.read(self._master, 65536)
        except OSError:
            return b""

    def close(self) -> tuple[list[str], list[str]]:
        """Return all text between carriage returns, and the lines visible at the end."""
        self._stream.close()
        self._reader.join(10)
        os.close(self._master)
        text = self._read.decode()
        lines = []
        for written in text.split("\n"):
            line = ""
            for part in written.split("\r"):
                line = part + line[len(part) :]
            lines.append(line.rstrip())
        return text.replace("\n", "\r").split("\r"), lines[:-1]


@dataclass(frozen=True)
class Watched:
    """The three stages, trained on a terminal of 160 columns: all text written, and the lines visible at the end."""

    logs: Path
    written: list[str]
    lines: list[str]


@pytest.fixture(scope="module")
def watched(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    logs, alone = tmp_path_factory.mktemp("watched"), Processes(0, 1, torch.device("cpu"))
    overrides = [f"data.root={tiny_world}", f"logs={logs}"]
    with pytest.MonkeyPatch.context() as patches:
        terminal = Terminal(patches, 160)
        run_pointwise(alone, [*overrides, "train.evaluate_every=10"])
        run_reward(alone, [*overrides, "train.evaluate_every=20"])
        run_ppo(alone, [*overrides, "train.epochs=6", "train.evaluate_every=1"])
    return Watched(logs, *terminal.close())


def test_a_terminal_shows_one_progress_line_separate_from_logged_lines(watched: Watched) -> None:
    moving = [line for line in watched.written if "/a " in line and "%" in line]
    assert max(map(len, moving)) <= MAX_COLUMNS
    assert any("/s  " in line and line.endswith(" left") for line in moving)
    last = [line for line in watched.lines if "%" in line]
    assert [line.split()[:2] for line in last] == [[f"{stage}/a", "100%"] for stage in LR2PPO]
    for line, value, metric in zip(
        last, ("loss 0.", "loss 0.", "reward "), ("ndcg ", "pair acc. ", "ndcg "), strict=True
    ):
        assert value in line
        assert f"{metric}" in line
        assert ", best " in line
        assert "took 00:" in line
    logged = [line for line in watched.lines if line.startswith("step ")]
    assert [line.split()[1] for line in logged[:5]] == ["10/48", "20/48", "30/48", "40/48", "48/48"]
    assert [" left" in line for line in logged[:5]] == [True, True, True, True, False]


def test_piped_output_has_only_logged_lines(
    alone: Processes, tiny_overrides: Overrides, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    printed = capfd.readouterr()
    assert printed.err == ""
    assert "\r" not in printed.out
    assert "%" not in printed.out
    progress = json.loads((logs / "pointwise" / "a" / "progress.json").read_text(encoding="utf-8"))
    assert progress == {"step": 48, "steps": 48, "seconds_left": None}


@given(
    lengths=st.lists(st.integers(0, 30), max_size=8),
    order=st.randoms(use_true_random=False),
    columns=st.integers(1, 100),
)
def test_a_line_of_progress_fits_any_terminal_and_keeps_what_matters_most(
    lengths: list[int], order: random.Random, columns: int
) -> None:
    importance = order.sample(range(len(lengths)), len(lengths))
    pieces = [
        (f"<{place}{'-' * length}>", rank) for place, (length, rank) in enumerate(zip(lengths, importance, strict=True))
    ]
    head = "run  50%"
    line = tqdm.format_meter(1, 2, 1.0, bar_format=bar_format([(head, 9), *pieces], columns))
    assert len(line) <= columns
    assert line.startswith(head[:columns])
    shown = [rank for text, rank in pieces if text in line]
    left_out = [rank for text, rank in pieces if text not in line]
    assert max(left_out, default=-1) < min(shown, default=9)
    room = columns - len(line)
    assert all(len(text) + 2 > room for text, rank in pieces if left_out and rank == max(left_out))
    assert line.count("<") == line.count(">") == len(shown)


def events(folder: Path) -> Any:
    accumulator = EventAccumulator(str(folder), {"scalars": 0, "histograms": 0, "images": 0})
    accumulator.Reload()
    return accumulator


def curve(accumulator: Any, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in accumulator.Scalars(name)]


def approximately(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Round values to float32, as TensorBoard stores them."""
    return [(step, float(np.float32(value))) for step, value in points]


def test_tensorboard_shows_all_that_is_logged_of_each_stage(watched: Watched) -> None:
    logs = watched.logs
    histograms = {
        "pointwise": {f"validation_scores/grade {grade}" for grade in range(3)},
        "reward": {"validation_margins"},
    }
    for stage in LR2PPO:
        folder, shown = logs / stage / "a", events(logs / stage / "a")
        written = rows(logs, stage)
        for name in written[-1].keys() - {"step", "seconds"}:
            wanted = [(row["step"], row[name]) for row in written if name in row]
            assert curve(shown, name) == approximately(wanted)
        tags = shown.Tags()
        assert set(tags["histograms"]) == histograms.get(stage, histograms["pointwise"])
        for name in tags["histograms"]:
            assert [event.step for event in shown.Histograms(name)] == [row["step"] for row in written]
        cases = {f"validation_cases/{number}" for number in range(1, 4)}
        assert set(tags["images"]) == (set() if stage == "reward" else cases)
        finished = json.loads((folder / "finished.json").read_text(encoding="utf-8"))
        metric = "pair_accuracy" if stage == "reward" else "ndcg"
        assert curve(shown, f"best/{metric}") == approximately([(finished["steps"], finished["best_metric"])])
        # All in one folder, which is one run to TensorBoard.
        assert len(list(folder.rglob("events.out.tfevents.*"))) == 1
        settings = hyperparameters(shown)
        assert settings["stage"].string_value == stage
        assert "data.root" not in settings
    assert {f"train/{who}_{what}" for who in ("actor", "critic") for what in ("learning_rate", "gradient_norm")} <= set(
        events(logs / "ppo" / "a").Tags()["scalars"]
    )
    assert hyperparameters(events(logs / "pointwise" / "a"))["train.learning_rate"].number_value == 2e-3


def hyperparameters(accumulator: Any) -> Any:
    content = accumulator.PluginTagToContent("hparams")
    assert set(content) == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert all(info.name.tag in accumulator.Tags()["scalars"] for info in experiment.metric_infos)
    return HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams


def test_a_resumed_run_is_shown_like_one_that_was_never_killed(
    alone: Processes, tiny_overrides: Overrides, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_overrides("train.evaluate_every=5", "safety.checkpoint_steps=7")
    logs = run_pointwise(alone, settings, "whole").logs
    real: Callable[..., None] = TrainingRun.save_checkpoint

    def killed(self: TrainingRun[Any], *arguments: Any) -> None:
        real(self, *arguments)
        if self.step == 26:
            raise InterruptedError

    monkeypatch.setattr(TrainingRun, "save_checkpoint", killed)
    with pytest.raises(InterruptedError):
        run_pointwise(alone, settings, "killed")
    monkeypatch.undo()
    run_pointwise(alone, settings, "killed")
    whole, killed_once = (events(logs / "pointwise" / name) for name in ("whole", "killed"))
    assert whole.Tags() == killed_once.Tags()
    for name in whole.Tags()["scalars"]:
        assert curve(whole, name) == curve(killed_once, name)
    for kind, read in (("histograms", EventAccumulator.Histograms), ("images", EventAccumulator.Images)):
        for name in whole.Tags()[kind]:
            first, second = ([event.step for event in read(shown, name)] for shown in (whole, killed_once))
            assert first == second


def test_cases_are_pictured_seldom_however_often_a_run_evaluates(watched: Watched) -> None:
    written = rows(watched.logs, "ppo")
    values = [row["validation/ndcg"] for row in written]
    best = [row["step"] for number, row in enumerate(written) if values[number] > max(values[:number], default=-1)]
    parts = [step * IMAGE_INTERVALS // 12 for step in best]
    wanted = [step for number, step in enumerate(best) if parts[number] not in parts[:number]]
    pictured = [event.step for event in events(watched.logs / "ppo" / "a").Images("validation_cases/1")]
    assert pictured == wanted
    assert 1 < len(pictured) < len(best)


def test_logging_draws_no_random_number_and_takes_scores_that_are_no_numbers(tmp_path: Path) -> None:
    before = torch.get_rng_state(), random.getstate()
    board = TensorBoard(tmp_path, tmp_path, None)
    bad = np.array([np.nan, np.inf, 1.0, 2.0])
    for scores in (SCORES, bad, np.full(4, np.nan), np.zeros(4)):
        board.log(1, {"train/loss": 1.0}, Evaluation({"ndcg": 1.0}, {"scores": scores}, [(CLIP, scores)]), True)
    board.log_result(2, {"seed": 7, "ranker": None, "data.features": ["a.h5"]}, {"ndcg": 0.5})
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_a_full_disk_is_reported_before_the_events_are_truncated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = TensorBoard(tmp_path, tmp_path, None)
    board.log(1, {"train/loss": 1.0}, Evaluation({}), False)
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match="No space left on device"):
        board.log(2, {"train/loss": 2.0}, Evaluation({}), False)
    assert curve(events(tmp_path), "train/loss") == [(1, 1.0)]
