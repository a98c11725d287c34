"""Pair files: how pairs are drawn from those that annotators judge, and the regimes of annotation."""

from pathlib import Path

import numpy as np
import pytest

from lr2ppo.data import annotations
from lr2ppo.data.annotations import Clip, read_clips
from lr2ppo.data.mini import WORLDS, uniform, write_mini, write_regimes
from lr2ppo.data.mini.pairs import draw_pairs
from lr2ppo.data.mini.uniform import judged_by_grades

LABELS = tuple(uniform.NOUNS[:20])
NAMES = ("40x5", "100x10", "300x20", "100x10_flipped25")
SIZES = {"source": 1, "target": 130, "validation": 1, "test": 1, "pretraining": 1}

Pairs = dict[str, list[tuple[int, int]]]


def regime_path(name: str) -> str:
    return annotations.PAIRS_OF_REGIME.format(regime=name)


def read_pairs(path: Path) -> Pairs:
    return {clip.id: [(a, b) for a, b in clip.pairs.tolist()] for clip in read_clips(path, "pairs")}


@pytest.fixture(scope="module", params=WORLDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("regimes")
    write_mini(root, 7, SIZES, request.param)
    return root


def test_a_tenth_of_a_clips_pairs_is_drawn_and_ties_are_left_out() -> None:
    untied = judged_by_grades(Clip("clip", LABELS, np.arange(20)))
    tied = judged_by_grades(Clip("clip", LABELS, np.ones(20, dtype=np.int64)))
    halves = judged_by_grades(Clip("clip", LABELS, np.arange(20) % 2))
    rng = np.random.default_rng(0)
    assert len(draw_pairs(untied, 20, rng).pairs) == 20
    assert len(draw_pairs(tied, 20, rng).pairs) == 0
    drawn = [len(draw_pairs(halves, 20, rng).pairs) for _ in range(200)]
    assert np.mean(drawn) == pytest.approx(20 * 100 / 190, abs=0.6)
    every = {frozenset(pair) for _ in range(200) for pair in draw_pairs(untied, 20, rng).pairs.tolist()}
    assert len(every) == 190


def test_pairs_of_an_ungraded_clip_are_refused() -> None:
    with pytest.raises(ValueError, match="clip bare has no grades"):
        judged_by_grades(Clip("bare", ("a", "b")))


def test_regimes_are_parts_of_each_other_and_agree_with_the_files_of_shares(folder: Path) -> None:
    regimes = {name: read_pairs(folder / regime_path(name)) for name in NAMES}
    for name, clips, most in (("40x5", 40, 5), ("100x10", 100, 10), ("300x20", 130, 20)):
        assert len(regimes[name]) == clips
        assert max(map(len, regimes[name].values())) == most
    for smaller, larger in (("40x5", "100x10"), ("100x10", "300x20")):
        for clip, pairs in regimes[smaller].items():
            assert set(pairs) <= set(regimes[larger][clip])
    shares = read_pairs(folder / annotations.PAIRS_OF_SHARE.format(share=50))
    agreed = 0
    for clip, pairs in regimes["300x20"].items():
        assert len(set(map(frozenset, pairs))) == len(pairs)
        assert not set(pairs) & {(b, a) for a, b in shares.get(clip, [])}
        agreed += len(set(pairs) & set(shares.get(clip, [])))
    assert agreed > 100


def test_a_quarter_of_the_flipped_pairs_is_reversed(folder: Path) -> None:
    straight, flipped = (read_pairs(folder / regime_path(name)) for name in ("100x10", "100x10_flipped25"))
    assert list(straight) == list(flipped)
    reversed_ = []
    for clip, pairs in straight.items():
        for (a, b), other in zip(pairs, flipped[clip], strict=True):
            assert other in {(a, b), (b, a)}
            reversed_.append(other == (b, a))
    assert sum(reversed_) == round(len(reversed_) / 4)
    # Anywhere in the file.
    assert 0.1 < np.mean(reversed_[: len(reversed_) // 2]) < 0.4


def test_regimes_added_to_a_uniform_folder_are_those_of_its_seed(tmp_path: Path) -> None:
    write_mini(tmp_path, 7, SIZES | {"target": 12})
    written = {name: (tmp_path / regime_path(name)).read_bytes() for name in NAMES}
    for name in NAMES:
        (tmp_path / regime_path(name)).unlink()
    clips = read_clips(tmp_path / annotations.TARGET_TRAIN, "grades")
    write_regimes(tmp_path, [judged_by_grades(clip) for clip in clips], seed=7)
    assert {name: (tmp_path / regime_path(name)).read_bytes() for name in NAMES} == written
