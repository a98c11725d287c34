"""The uniform world: 20 labels a clip, graded by its rules, with annotators who agree with the grades."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lr2ppo.data import annotations
from lr2ppo.data.annotations import Clip, read_clips
from lr2ppo.data.mini import drawing, uniform, write_mini
from lr2ppo.data.mini.drawing import Things
from lr2ppo.data.mini.uniform import UniformWorld

SIZES = {"source": 4, "target": 4, "validation": 2, "test": 3, "pretraining": 5}
PIXELS = 64 * 64


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini")
    write_mini(root, seed=7, sizes=SIZES)
    return root


def mentioned_words(clip: Clip) -> set[str]:
    return set(re.findall(r"\w+", clip.description)) & set(uniform.NOUNS)


def grades_of(clip: Clip) -> dict[str, int]:
    assert clip.grades is not None
    return dict(zip(clip.labels, clip.grades.tolist(), strict=True))


def test_labels_of_a_clip_are_20_different_nouns_in_no_order(world: Path) -> None:
    orders = set()
    files = (annotations.SOURCE_TRAIN, annotations.TARGET_TRAIN, annotations.VALIDATION, annotations.TEST)
    for file in files:
        for clip in read_clips(world / file):
            assert len(clip.images) == 4
            assert len(set(clip.labels)) == len(clip.labels) == 20
            assert set(clip.labels) <= set(uniform.NOUNS)
            orders.add(clip.labels)
    assert len(orders) == 13
    assert not any(list(labels) == sorted(labels) for labels in orders)


def recording_draw_frame(seen: list[dict[str, int]]) -> Callable[..., tuple[drawing.Picture, drawing.Pixels]]:
    """Wrap the generator's `draw_frame` to record each object's visible pixels by name."""
    draw_frame = drawing.draw_frame

    def draw(things: Things, nouns: Sequence[int], *arguments: Any) -> tuple[drawing.Picture, drawing.Pixels]:
        picture, visible = draw_frame(things, nouns, *arguments)
        seen.append({uniform.NOUNS[noun]: int(pixels) for noun, pixels in zip(nouns, visible, strict=True)})
        return picture, visible

    return draw


def draw_recorded(
    domain: str, count: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Clip, list[dict[str, int]]]]:
    """Clips of a domain, each with the visible pixels of the objects in its frames."""
    rng = np.random.default_rng(3)
    world = UniformWorld.draw(rng)
    seen: list[dict[str, int]] = []
    monkeypatch.setattr(drawing, "draw_frame", recording_draw_frame(seen))
    clips = [world.draw_clip(domain, f"{domain}-{number}", root, rng) for number in range(count)]
    return [(clip, seen[4 * number : 4 * number + 4]) for number, clip in enumerate(clips)]


def test_source_grades_say_how_much_of_the_picture_a_thing_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    for clip, frames in draw_recorded("source", 12, tmp_path, monkeypatch):
        present = {name for frame in frames for name in frame}
        assert 5 <= len(present) <= 8
        for name, grade in grades_of(clip).items():
            filled = sum(frame.get(name, 0) for frame in frames) / 4 / PIXELS
            assert grade == (2 if filled >= 0.035 else 1 if filled >= 0.009 else 0), (clip.id, name, filled)
            found.add(grade)
    assert found == {0, 1, 2}


def test_target_grades_say_what_the_clip_is_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for clip, frames in draw_recorded("target", 12, tmp_path, monkeypatch):
        words = mentioned_words(clip)
        present = {name for frame in frames for name in frame}
        assert 6 <= len(present) <= 8
        assert 2 <= len(words & present) <= 4
        assert 1 <= len(words - present) <= 2
        for name, grade in grades_of(clip).items():
            steadiness = sum(frame.get(name, 0) >= 12 for frame in frames) / 4
            mentioned = name in words
            expected = 2 if mentioned and steadiness >= 0.5 else 1 if mentioned or steadiness >= 0.75 else 0
            assert grade == expected, (clip.id, name, steadiness)
            found.add((grade, mentioned))
    assert found == {(0, False), (1, False), (1, True), (2, True)}


def test_source_descriptions_mention_visible_things_no_more_than_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    present_share, mentioned_present = [], []
    for clip, frames in draw_recorded("source", 60, tmp_path, monkeypatch):
        present = {name for frame in frames for name in frame}
        words = mentioned_words(clip)
        assert 3 <= len(words) <= 4
        assert words <= set(clip.labels)
        present_share.append(len(present) / 20)
        mentioned_present += [word in present for word in words]
    error = float(np.sqrt(0.25 / len(mentioned_present)))
    assert np.mean(mentioned_present) == pytest.approx(np.mean(present_share), abs=3 * error)


@pytest.mark.parametrize("domain", ["source", "target"])
def test_every_mention_is_a_candidate_label(domain: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    world = UniformWorld.draw(rng)
    for number in range(5):
        clip = world.draw_clip(domain, str(number), tmp_path, rng)
        assert mentioned_words(clip) <= set(clip.labels)


@pytest.mark.parametrize(
    ("pixels", "mentioned", "source", "target"),
    [
        ([0, 0, 0, 0], False, 0, 0),
        ([0, 0, 0, 0], True, 0, 1),
        ([12, 12, 0, 0], True, 0, 2),
        ([12, 11, 11, 11], True, 0, 1),
        ([12, 12, 12, 0], False, 0, 1),
        ([12, 12, 11, 11], False, 0, 0),
        ([37, 37, 37, 37], False, 1, 1),
        ([148, 0, 0, 0], True, 1, 1),
        ([147, 0, 0, 0], True, 0, 1),
        ([574, 0, 0, 0], False, 2, 0),
        ([573, 0, 0, 0], True, 1, 1),
    ],
)
def test_grades_change_at_their_thresholds(pixels: list[int], mentioned: bool, source: int, target: int) -> None:
    visible, words = np.array(pixels)[:, None], np.array([mentioned])
    assert uniform.source_grades(visible, words).tolist() == [source]
    assert uniform.target_grades(visible, words).tolist() == [target]


def test_annotated_pairs_have_the_better_label_first_and_no_pair_twice(world: Path) -> None:
    clips = read_clips(world / annotations.TARGET_PAIRS, "pairs")
    for clip in clips:
        assert clip.grades is not None
        assert np.all(clip.grades[clip.pairs[:, 0]] > clip.grades[clip.pairs[:, 1]])
        assert len({frozenset(pair) for pair in clip.pairs.tolist()}) == len(clip.pairs) <= 20
