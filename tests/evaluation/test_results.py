"""The files of a run's evaluations keep every split's part, however many evaluations end at once."""

import errno
import fcntl
import os
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lr2ppo.data import Clip
from lr2ppo.evaluation.comparison import METRIC_NAMES
from lr2ppo.evaluation.results import CASES, describe_cases, read_by_split, write_evaluation
from lr2ppo.runs.lookup import RESULTS

CLIPS = 40


def evaluation(number: float) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Results and cases that tell the number of their evaluation."""
    clips = [Clip(f"clip-{clip}", ("a", "b"), grades=np.array([0, 1])) for clip in range(CLIPS)]
    metrics: dict[str, Any] = {name: {"mean": number, "low": number, "high": number} for name in METRIC_NAMES}
    results = metrics | {"chance": dict.fromkeys(METRIC_NAMES, 0.5), "annotations": "a.json", "clips": CLIPS}
    return results, describe_cases(clips, [np.array([number, -1.0])] * CLIPS)


def numbers(folder: Path, split: str) -> tuple[float, float]:
    """The numbers of the evaluations that a run's results and its cases are of."""
    results, cases = (read_by_split(folder / name)[split] for name in (RESULTS, CASES))
    return results["ndcg"]["mean"], cases[0]["scores"][0]


def write(folder: Path, started: Barrier, own: float, split: str) -> None:
    written = evaluation(own)
    started.wait()
    write_evaluation(folder, split, *written)


def write_at_once(folder: Path, splits: list[str]) -> None:
    """Write the evaluation of each split in a separate process, numbered from 1."""
    context = get_context("fork")
    started = context.Barrier(len(splits))
    processes = [
        context.Process(target=write, args=(folder, started, float(number), split))
        for number, split in enumerate(splits, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * len(splits)


def test_evaluations_that_end_at_once_lose_no_split(tmp_path: Path) -> None:
    for turn in range(5):
        folder = tmp_path / str(turn)
        folder.mkdir()
        splits = [f"split-{number}" for number in range(1, 6)]
        write_at_once(folder, splits)
        assert {split: numbers(folder, split) for split in read_by_split(folder / RESULTS)} == {
            split: (number, number) for number, split in enumerate(splits, 1)
        }


def test_results_and_cases_of_a_split_are_of_one_evaluation(tmp_path: Path) -> None:
    for _ in range(5):
        write_at_once(tmp_path, ["test"] * 5)
        results, cases = numbers(tmp_path, "test")
        assert results == cases


def test_an_evaluation_on_a_disk_without_locks_says_so_and_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    write_evaluation(tmp_path, "test", *evaluation(1))
    assert ".results.lock: cannot be locked: No locks available; here, evaluate" in capsys.readouterr().out
    assert numbers(tmp_path, "test") == (1, 1)
