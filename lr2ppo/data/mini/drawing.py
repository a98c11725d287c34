"""The pictures of all worlds: every noun is a thing of a fixed shape and colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lr2ppo.data.annotations import Clip

SCENES = {
    "sand": (214, 190, 140),
    "grass": (96, 150, 80),
    "sea": (70, 110, 160),
    "night": (28, 28, 48),
    "snow": (232, 236, 240),
}
COLOURS = (
    (205, 40, 40), (245, 140, 20), (240, 225, 40), (20, 220, 90), (40, 230, 230), (30, 50, 215),
    (150, 40, 190), (250, 120, 200),
)  # fmt: skip
SHAPES = ("disc", "square", "triangle", "diamond", "ring", "cross", "horizontal bar", "vertical bar")

SIZE = 64
RADII = ((4.5, 6.5), (7.0, 9.5), (10.5, 14.0))
RADIUS_SHARES = (0.40, 0.35, 0.25)
SEEN_PIXELS = 12

Picture = NDArray[np.uint8]
Pixels = NDArray[np.int64]
Generator = np.random.Generator


@dataclass(frozen=True)
class Things:
    """A world's nouns and their looks `[nouns, 2]`: an index into SHAPES and one into COLOURS, unique per noun."""

    nouns: Sequence[str]
    looks: NDArray[np.int64]

    @classmethod
    def draw(cls, nouns: Sequence[str], rng: Generator) -> "Things":
        looks = rng.choice(len(SHAPES) * len(COLOURS), size=len(nouns), replace=False)
        return cls(nouns, np.stack(np.divmod(looks, len(COLOURS)), axis=1))


def draw_scene(rng: Generator) -> str:
    """Draw the name of a scene."""
    return str(rng.choice(list(SCENES)))


def draw_radii(count: int, rng: Generator) -> NDArray[np.float64]:
    """Draw the sizes of things: [count]."""
    return np.array([rng.uniform(*RADII[rng.choice(3, p=RADIUS_SHARES)]) for _ in range(count)])


def draw_frames(
    things: Things,
    candidates: NDArray[np.int64],
    present: NDArray[np.int64],
    frames: int,
    scene: str,
    name: str,
    root: Path,
    rng: Generator,
) -> tuple[tuple[str, ...], Pixels]:
    """Draw a clip's frames into `root/frames/name`, each thing in some of them.

    Shapes: candidates: [labels] nouns; present: positions among them. Returns the frames' names and the visible pixels
    of each label in each frame, `[frames, labels]`.
    """
    radii = draw_radii(len(present), rng)
    seen_in = np.array([rng.permutation(frames) < rng.integers(1, frames + 1) for _ in present])
    visible = np.zeros((frames, len(candidates)), dtype=np.int64)
    images = []
    for frame in range(frames):
        here = np.flatnonzero(seen_in[:, frame])
        picture, pixels = draw_frame(things, candidates[present[here]].tolist(), radii[here], scene, rng)
        visible[frame, present[here]] = pixels
        images.append(_write_picture(root, f"frames/{name}/{frame:04d}.jpg", picture))
    return tuple(images), visible


def draw_frame(
    things: Things, nouns: Sequence[int], radii: NDArray[np.float64], scene: str, rng: Generator
) -> tuple[Picture, Pixels]:
    """Paint things on a scene, large first: the picture `[64, 64, 3]` and each thing's visible pixels."""
    picture = np.full((SIZE, SIZE, 3), SCENES[scene], dtype=np.float64)
    owner = np.full((SIZE, SIZE), -1)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    for thing in np.argsort(-radii):
        radius = radii[thing]
        centre = rng.uniform(radius, SIZE - radius, size=2)
        shape, colour = things.looks[nouns[thing]]
        inside = _covers(SHAPES[shape], (columns - centre[0]) / radius, (rows - centre[1]) / radius)
        picture[inside] = np.array(COLOURS[colour]) + rng.normal(0, 8, size=3)
        owner[inside] = thing
    picture += rng.normal(0, 10, size=picture.shape)
    visible = np.bincount(owner[owner >= 0], minlength=len(nouns))
    return picture.clip(0, 255).astype(np.uint8), visible


def _covers(shape: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which pixels a shape covers; `x`, `y` are measured from its centre in radii."""
    distance = np.hypot(x, y)
    covers: dict[str, NDArray[np.bool_]] = {
        "disc": distance <= 1,
        "square": np.maximum(abs(x), abs(y)) <= 0.85,
        "triangle": (y <= 0.8) & (abs(x) <= (y + 1) * 0.55),
        "diamond": abs(x) + abs(y) <= 1.1,
        "ring": (distance <= 1) & (distance >= 0.55),
        "cross": (np.minimum(abs(x), abs(y)) <= 0.32) & (np.maximum(abs(x), abs(y)) <= 1),
        "horizontal bar": (abs(x) <= 1) & (abs(y) <= 0.4),
        "vertical bar": (abs(x) <= 0.4) & (abs(y) <= 1),
    }
    return covers[shape]


def draw_captioned_frame(things: Things, name: str, root: Path, rng: Generator) -> Clip:
    """Draw one ungraded frame of 1 to 4 things, all nouns alike often, with a caption that names them all."""
    nouns = rng.permutation(len(things.nouns))[: rng.integers(1, 5)].tolist()
    radii = draw_radii(len(nouns), rng)
    scene = draw_scene(rng)
    picture, _ = draw_frame(things, nouns, radii, scene, rng)
    image = _write_picture(root, f"frames/pretrain/{name}.jpg", picture)
    shown = " and ".join(f"a {things.nouns[noun]}" for noun in nouns)
    return Clip(id=name, labels=(), description=f"a picture of {shown} on the {scene}", images=(image,))


def _write_picture(root: Path, name: str, picture: Picture) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=90)
    return name
