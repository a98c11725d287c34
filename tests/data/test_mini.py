"""The mini benchmark: reproducible, in LRMovieNet's layout, graded by its rules."""

import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lr2ppo.data import annotations, mini
from lr2ppo.data.annotations import Clip, Need, read_clips

SIZES = {"source": 4, "target": 4, "validation": 2, "test": 3, "pretraining": 5}
FILES: dict[str, tuple[str, Need, int]] = {
    "source": (annotations.SOURCE_TRAIN, "grades", 4),
    "target": (annotations.TARGET_TRAIN, "labels", 4),
    "pairs": (annotations.TARGET_PAIRS, "pairs", 4),
    "validation": (annotations.VALIDATION, "grades", 2),
    "test": (annotations.TEST, "grades", 3),
    "pretraining": (annotations.CAPTIONS, "images", 5),
}
PIXELS = 64 * 64

Seen = dict[str, list[dict[str, int]]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mini") / "seed 7"
    mini.write_mini(root, seed=7, sizes=SIZES)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def mentioned_words(clip: Clip) -> set[str]:
    return set(re.findall(r"\w+", clip.description)) & set(mini.NOUNS)


def grades_of(clip: Clip) -> dict[str, int]:
    assert clip.grades is not None
    return dict(zip(clip.labels, clip.grades.tolist(), strict=True))


def test_the_same_seed_writes_the_same_bytes(world: Path, tmp_path: Path) -> None:
    mini.write_mini(tmp_path, seed=7, sizes=SIZES)
    assert contents(tmp_path) == contents(world)


def test_another_seed_writes_other_clips_and_pictures(world: Path, tmp_path: Path) -> None:
    mini.write_mini(tmp_path, seed=8, sizes=SIZES)
    mine, other = contents(world), contents(tmp_path)
    assert mine.keys() == other.keys()
    assert all(mine[name] != other[name] for name in mine)


def test_a_larger_split_starts_with_the_clips_of_a_smaller_one_and_changes_no_other(
    world: Path, tmp_path: Path
) -> None:
    mini.write_mini(tmp_path, seed=7, sizes=SIZES | {"source": 6})
    mine, larger = contents(world), contents(tmp_path)
    assert {name for name in mine if larger[name] != mine[name]} == {annotations.SOURCE_TRAIN}
    before = read_clips(world / annotations.SOURCE_TRAIN)
    after = read_clips(tmp_path / annotations.SOURCE_TRAIN)
    assert [grades_of(clip) for clip in after[:4]] == [grades_of(clip) for clip in before]


@pytest.mark.parametrize("split", FILES)
def test_each_file_reads_with_what_its_stage_needs(world: Path, split: str) -> None:
    name, need, count = FILES[split]
    clips = read_clips(world / name, need)
    assert len(clips) == count
    for clip in clips:
        assert clip.description
        assert all((world / image).is_file() for image in clip.images)


def test_frames_are_jpeg_pictures_of_one_size_each_named_by_one_clip(world: Path) -> None:
    named: list[str] = []
    for split in ("source", "target", "validation", "test", "pretraining"):
        for clip in read_clips(world / FILES[split][0], "images"):
            assert len(clip.images) == (1 if split == "pretraining" else 4)
            named += clip.images
    assert len(set(named)) == len(named)
    assert set(named) == {str(path.relative_to(world)) for path in world.rglob("*.jpg")}
    for name in named:
        with Image.open(world / name) as picture:
            assert (picture.format, picture.size, picture.mode) == ("JPEG", (64, 64), "RGB")


def test_splits_share_no_clip_and_the_pair_file_repeats_the_target_clips(world: Path) -> None:
    clips = {split: read_clips(world / name, need) for split, (name, need, _) in FILES.items()}
    pairs, target = clips.pop("pairs"), clips["target"]
    ids = [clip.id for split in clips.values() for clip in split]
    assert len(set(ids)) == len(ids)
    known = {clip.id: clip for clip in target}
    for clip in pairs:
        same = known[clip.id]
        assert (clip.labels, clip.description, clip.images) == (same.labels, same.description, same.images)


def test_labels_of_a_clip_are_20_different_nouns_in_no_order(world: Path) -> None:
    orders = set()
    for split in ("source", "target", "validation", "test"):
        for clip in read_clips(world / FILES[split][0]):
            assert len(set(clip.labels)) == len(clip.labels) == 20
            assert set(clip.labels) <= set(mini.NOUNS)
            orders.add(clip.labels)
    assert len(orders) == 13
    assert not any(list(labels) == sorted(labels) for labels in orders)


def recording_draw_frame(seen: list[dict[str, int]]) -> Callable[..., tuple[mini.Picture, NDArray[np.int64]]]:
    """Wrap the generator's `draw_frame` to record each object's visible pixels by name."""
    draw_frame = mini.draw_frame

    def draw(world: mini.World, nouns: Sequence[int], *arguments: Any) -> tuple[mini.Picture, NDArray[np.int64]]:
        picture, visible = draw_frame(world, nouns, *arguments)
        seen.append({mini.NOUNS[noun]: int(pixels) for noun, pixels in zip(nouns, visible, strict=True)})
        return picture, visible

    return draw


def draw_recorded(
    domain: str, count: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[Clip, list[dict[str, int]]]]:
    """Clips of a domain, each with the visible pixels of the objects in its frames."""
    rng = np.random.default_rng(3)
    looks = mini.World.draw(rng)
    seen: list[dict[str, int]] = []
    monkeypatch.setattr(mini, "draw_frame", recording_draw_frame(seen))
    clips = [mini.draw_clip(looks, domain, f"{domain}-{number}", root, rng) for number in range(count)]
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
    looks = mini.World.draw(rng)
    for number in range(5):
        clip = mini.draw_clip(looks, domain, str(number), tmp_path, rng)
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
    assert mini.source_grades(visible, words).tolist() == [source]
    assert mini.target_grades(visible, words).tolist() == [target]


def test_annotated_pairs_have_the_better_label_first_and_no_pair_twice(world: Path) -> None:
    clips = read_clips(world / annotations.TARGET_PAIRS, "pairs")
    for clip in clips:
        assert clip.grades is not None
        assert np.all(clip.grades[clip.pairs[:, 0]] > clip.grades[clip.pairs[:, 1]])
        assert len({frozenset(pair) for pair in clip.pairs.tolist()}) == len(clip.pairs) <= 20


def test_a_tenth_of_a_clips_pairs_is_drawn_and_ties_are_left_out() -> None:
    labels = tuple(mini.NOUNS[:20])
    untied = Clip("clip", labels, np.arange(20))
    tied = Clip("clip", labels, np.ones(20, dtype=np.int64))
    halves = Clip("clip", labels, np.arange(20) % 2)
    rng = np.random.default_rng(0)
    assert len(mini.annotate_pairs(untied, rng).pairs) == 20
    assert len(mini.annotate_pairs(tied, rng).pairs) == 0
    drawn = [len(mini.annotate_pairs(halves, rng).pairs) for _ in range(200)]
    assert np.mean(drawn) == pytest.approx(20 * 100 / 190, abs=0.6)
    every = {frozenset(pair) for _ in range(200) for pair in mini.annotate_pairs(untied, rng).pairs.tolist()}
    assert len(every) == 190


def test_a_smaller_share_of_annotated_pairs_is_part_of_a_larger_one(world: Path) -> None:
    shares = {
        share: {
            clip.id: set(map(tuple, clip.pairs.tolist()))
            for clip in read_clips(world / annotations.PAIRS_OF_SHARE.format(share=share), "pairs")
        }
        for share in mini.OTHER_SHARES
    }
    for (less, smaller), (more, larger) in itertools.pairwise(shares.items()):
        assert less < more
        assert smaller.keys() <= larger.keys()
        assert all(pairs <= larger[clip] for clip, pairs in smaller.items())
    for share, drawn in mini.OTHER_SHARES.items():
        assert drawn == pytest.approx(share * 1.9, abs=0.5)
        # About half of the pairs are of different grades.
        assert 0 < max(map(len, shares[share].values())) <= drawn


def test_pairs_of_an_ungraded_clip_are_refused() -> None:
    with pytest.raises(ValueError, match="clip bare has no grades"):
        mini.annotate_pairs(Clip("bare", ("a", "b")), np.random.default_rng(0))


def test_captions_name_the_things_of_their_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    looks = mini.World.draw(rng)
    seen: list[dict[str, int]] = []
    monkeypatch.setattr(mini, "draw_frame", recording_draw_frame(seen))
    counts = set()
    for number in range(30):
        clip = mini.draw_captioned_frame(looks, f"{number}", tmp_path, rng)
        assert mentioned_words(clip) == set(seen[-1])
        assert clip.grades is None
        counts.add(len(seen[-1]))
    assert counts == {1, 2, 3, 4}


@pytest.mark.parametrize("seed", range(5))
def test_no_two_nouns_of_a_world_look_the_same(seed: int) -> None:
    looks = mini.World.draw(np.random.default_rng(seed)).looks
    assert looks.shape == (40, 2)
    assert len(set(map(tuple, looks.tolist()))) == 40
    assert len(set(mini.NOUNS)) == 40
    assert set(looks[:, 0].tolist()) <= set(range(len(mini.SHAPES)))
    assert set(looks[:, 1].tolist()) <= set(range(len(mini.COLOURS)))


def quiet_picture(shape: int, colour: int, scene: str, radius: float = 12.0) -> NDArray[np.float64]:
    """One object, always drawn with the same random numbers."""
    looks = mini.World(np.array([[shape, colour]]))
    picture, _ = mini.draw_frame(looks, [0], np.array([radius]), scene, np.random.default_rng(1))
    return picture.astype(np.float64)


def test_shapes_and_colours_can_be_distinguished_on_every_scene() -> None:
    for scene in mini.SCENES:
        for one, other in itertools.combinations(range(len(mini.SHAPES)), 2):
            changed = np.abs(quiet_picture(one, 0, scene) - quiet_picture(other, 0, scene)).max(-1) > 20
            assert changed.sum() > 40, (mini.SHAPES[one], mini.SHAPES[other], scene)
    for one, other in itertools.combinations(range(len(mini.COLOURS)), 2):
        changed = np.abs(quiet_picture(1, one, "sea") - quiet_picture(1, other, "sea")).max(-1) > 40
        assert changed.sum() > 200, (mini.COLOURS[one], mini.COLOURS[other])


def test_a_thing_hidden_behind_a_nearer_one_is_counted_by_what_shows() -> None:
    looks = mini.World(np.array([[1, 0], [1, 5]]))
    hidden = 0
    for seed in range(40):
        _, both = mini.draw_frame(looks, [0, 1], np.array([14.0, 9.0]), "snow", np.random.default_rng(seed))
        _, large = mini.draw_frame(looks, [0], np.array([14.0]), "snow", np.random.default_rng(seed))
        assert both[1] == pytest.approx((2 * 0.85 * 9) ** 2, rel=0.15), "the small thing is on top"
        assert both[0] <= large[0]
        hidden += int(both[0] < large[0])
    assert 0 < hidden < 40
