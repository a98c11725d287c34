"""The pictures: things that can be told apart, hidden ones counted by what shows, captions that name them."""

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lr2ppo.data.mini import drawing, uniform, varied
from lr2ppo.data.mini.drawing import COLOURS, SCENES, SHAPES, Things, draw_captioned_frame, draw_frame


def test_captions_name_the_things_of_their_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    things = Things.draw(uniform.NOUNS, rng)
    seen: list[set[str]] = []

    def draw(things: Things, nouns: Sequence[int], *arguments: Any) -> tuple[drawing.Picture, drawing.Pixels]:
        seen.append({things.nouns[noun] for noun in nouns})
        return draw_frame(things, nouns, *arguments)

    monkeypatch.setattr(drawing, "draw_frame", draw)
    counts = set()
    for number in range(30):
        clip = draw_captioned_frame(things, f"{number}", tmp_path, rng)
        assert set(re.findall(r"\w+", clip.description)) & set(things.nouns) == seen[-1]
        assert clip.grades is None
        counts.add(len(seen[-1]))
    assert counts == {1, 2, 3, 4}


@pytest.mark.parametrize(("nouns", "count"), [(uniform.NOUNS, 40), (varied.NOUNS, 64)], ids=["uniform", "varied"])
@pytest.mark.parametrize("seed", range(5))
def test_no_two_nouns_of_a_world_look_the_same(seed: int, nouns: Sequence[str], count: int) -> None:
    looks = Things.draw(nouns, np.random.default_rng(seed)).looks
    assert looks.shape == (count, 2)
    assert len(set(map(tuple, looks.tolist()))) == count
    assert len(set(nouns)) == count
    assert set(looks[:, 0].tolist()) <= set(range(len(SHAPES)))
    assert set(looks[:, 1].tolist()) <= set(range(len(COLOURS)))


def quiet_picture(shape: int, colour: int, scene: str, radius: float = 12.0) -> NDArray[np.float64]:
    """One object, always drawn with the same random numbers."""
    things = Things(["thing"], np.array([[shape, colour]]))
    picture, _ = draw_frame(things, [0], np.array([radius]), scene, np.random.default_rng(1))
    return picture.astype(np.float64)


def test_shapes_and_colours_can_be_distinguished_on_every_scene() -> None:
    for scene in SCENES:
        for one, other in itertools.combinations(range(len(SHAPES)), 2):
            changed = np.abs(quiet_picture(one, 0, scene) - quiet_picture(other, 0, scene)).max(-1) > 20
            assert changed.sum() > 40, (SHAPES[one], SHAPES[other], scene)
    for one, other in itertools.combinations(range(len(COLOURS)), 2):
        changed = np.abs(quiet_picture(1, one, "sea") - quiet_picture(1, other, "sea")).max(-1) > 40
        assert changed.sum() > 200, (COLOURS[one], COLOURS[other])


def test_a_thing_hidden_behind_a_nearer_one_is_counted_by_what_shows() -> None:
    things = Things(["large", "small"], np.array([[1, 0], [1, 5]]))
    hidden = 0
    for seed in range(40):
        _, both = draw_frame(things, [0, 1], np.array([14.0, 9.0]), "snow", np.random.default_rng(seed))
        _, large = draw_frame(things, [0], np.array([14.0]), "snow", np.random.default_rng(seed))
        assert both[1] == pytest.approx((2 * 0.85 * 9) ** 2, rel=0.15), "the small thing is on top"
        assert both[0] <= large[0]
        hidden += int(both[0] < large[0])
    assert 0 < hidden < 40
