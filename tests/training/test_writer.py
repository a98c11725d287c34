"""Files written beside the training, and where a run's time goes."""

import threading
from pathlib import Path

import pytest

from lr2ppo.errors import UserError
from lr2ppo.training.clock import Clock
from lr2ppo.training.writer import Writer


def test_one_file_is_written_after_the_other(tmp_path: Path) -> None:
    writer, order, started = Writer(), [], threading.Event()

    def first() -> None:
        started.wait(timeout=60)
        order.append("first")

    writer.start(first)
    # Waits for the first, which waits for this.
    threading.Thread(target=started.set).start()
    writer.start(lambda: order.append("second"))
    writer.wait()
    assert order == ["first", "second"]


def test_what_the_writing_raises_is_raised_by_waiting_once() -> None:
    writer = Writer()

    def fail() -> None:
        raise UserError("the disk is full")

    writer.start(fail)
    with pytest.raises(UserError, match="the disk is full"):
        writer.wait()
    writer.wait()


class Hands:
    """A clock that the tests set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    made = Hands()
    monkeypatch.setattr("lr2ppo.training.clock.time", made)
    return made


def test_time_counts_for_the_innermost_activity(hands: Hands) -> None:
    clock = Clock()
    with clock.spending("evaluating"):
        hands.now += 3
        with clock.spending("writing"):
            hands.now += 10
        hands.now += 1
    assert clock.spent == {"evaluating": 4, "writing": 10}


def test_a_step_takes_the_median_of_laps_without_evaluations_and_files(hands: Hands) -> None:
    clock = Clock()
    assert clock.seconds_per_step is None
    for step, seconds, evaluation in ((0, 0, 0), (2, 4, 0), (4, 6, 50), (8, 4, 7)):
        hands.now += seconds
        with clock.spending("evaluating"):
            hands.now += evaluation
        clock.lap(step)
    assert clock.seconds_per_step == 2
