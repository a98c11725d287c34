"""Pictures of clips: frames, and labels in the colours of their grades."""

from pathlib import Path

import numpy as np
from PIL import Image

from lr2ppo.data import Clip
from lr2ppo.evaluation.pictures import THUMBNAIL_HEIGHT, case_picture, grade_colour, read_thumbnails

CLIP = Clip("clip $1", ("boat $x", "line\nbreak", "船 and more", ""), np.array([0, 2, 1, 0]), "costs $5 _or_ $6")
SCORES = np.array([0.1, 0.9, 0.5, -1.0])


def test_a_picture_shows_frames_and_labels_in_the_colours_of_their_grades() -> None:
    frame = np.full((50, 60, 3), (200, 30, 40), np.uint8)
    plain, framed = case_picture(CLIP, SCORES, []), case_picture(CLIP, SCORES, [frame, frame])
    assert plain.dtype == np.uint8
    assert framed.shape[0] > plain.shape[0]
    assert (framed == (200, 30, 40)).all(-1).sum() == 2 * 50 * 60
    # From top to bottom as the model orders them: grades 2, 1, 0, 0.
    places = [np.argwhere((plain == colour_of(grade)).all(-1))[:, 0].mean() for grade in (2, 1, 0)]
    assert places == sorted(places)


def colour_of(grade: int) -> tuple[int, ...]:
    return tuple(bytes.fromhex(grade_colour(grade).removeprefix("#")))


def test_grades_of_any_scale_have_a_colour_and_the_first_eleven_each_another() -> None:
    assert len({grade_colour(grade) for grade in range(11)}) == 11
    assert grade_colour(11) == grade_colour(99) == grade_colour(10)
    clip = Clip("a", ("x", "y", "z"), np.array([10, 7, 0]))
    picture = case_picture(clip, np.array([3.0, 2.0, 1.0]), [])
    assert all((picture == colour_of(grade)).all(-1).any() for grade in (10, 7, 0))


def test_thumbnails_are_evenly_spaced_over_the_clip(tmp_path: Path) -> None:
    names = tuple(f"{number}.png" for number in range(8))
    for number, name in enumerate(names):
        Image.new("RGB", (40, 20), (30 * number,) * 3).save(tmp_path / name)
    shades = [int(each[0, 0, 0]) // 30 for each in read_thumbnails(Clip("a", (), images=names), tmp_path)]
    assert shades == [0, 2, 5, 7]
    assert read_thumbnails(Clip("a", ()), tmp_path) == []


def test_frames_that_are_missing_broken_or_elsewhere_are_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    for place in (root / "good.jpg", tmp_path / "outside.jpg"):
        Image.new("RGB", (640, 360), "red").save(place)
    (root / "broken.jpg").write_bytes((root / "good.jpg").read_bytes()[:700])
    (root / "text.jpg").write_text("no picture")
    names = ("good.jpg", "gone.jpg", "broken.jpg", "text.jpg", "../outside.jpg")
    found = [read_thumbnails(Clip("a", (), images=(name,)), root) for name in names]
    assert [len(thumbnails) for thumbnails in found] == [1, 0, 0, 0, 0]
    assert found[0][0].shape[0] <= THUMBNAIL_HEIGHT
