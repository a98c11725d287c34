"""The mini benchmark: generated clips of coloured shapes in LRMovieNet's layout, with real JPEG frames.

A label is a noun with a fixed look (shape and colour). Source clips are graded by how much of the picture an object
fills; target clips by whether the description says the clip is about it and in how many frames it is visible.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from lr2ppo.data import annotations
from lr2ppo.data.annotations import Clip, graded, write_clips

NOUNS = (
    "anchor apple arrow basket bell boat book bottle bridge candle car chair clock cloud crown door drum feather fence "
    "flag flower guitar hammer hat house kite knife ladder lamp leaf moon mirror piano pillow rope ship star table "
    "tower wheel"
).split()
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
FRAMES = 4
LABELS = 20
RADII = ((4.5, 6.5), (7.0, 9.5), (10.5, 14.0))
RADIUS_SHARES = (0.40, 0.35, 0.25)
SEEN_PIXELS = 12

SplitSizes = dict[str, int]
SIZES: SplitSizes = {"source": 400, "target": 300, "validation": 60, "test": 150, "pretraining": 3000}
PAIRS_DRAWN = 20
# Other numbers of pairs of a clip, by their share of its 190, in percent; a smaller number is part of a larger one.
OTHER_SHARES = {1: 2, 2: 4, 5: 10, 20: 38, 50: 95}

Picture = NDArray[np.uint8]
Generator = np.random.Generator


@dataclass(frozen=True)
class World:
    """The look of every noun: an index into SHAPES and one into COLOURS, unique per noun."""

    looks: NDArray[np.int64]

    @classmethod
    def draw(cls, rng: Generator) -> "World":
        looks = rng.choice(len(SHAPES) * len(COLOURS), size=len(NOUNS), replace=False)
        return cls(np.stack(np.divmod(looks, len(COLOURS)), axis=1))


def draw_frame(
    world: World, nouns: Sequence[int], radii: NDArray[np.float64], scene: str, rng: Generator
) -> tuple[Picture, NDArray[np.int64]]:
    """Paint objects on a scene, large first: the picture `[64, 64, 3]` and each object's visible pixels."""
    picture = np.full((SIZE, SIZE, 3), SCENES[scene], dtype=np.float64)
    owner = np.full((SIZE, SIZE), -1)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    for thing in np.argsort(-radii):
        radius = radii[thing]
        centre = rng.uniform(radius, SIZE - radius, size=2)
        shape, colour = world.looks[nouns[thing]]
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


def source_grades(visible: NDArray[np.int64], mentioned: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Dominance: what fills much of the picture. visible: [frames, labels] pixels; `mentioned` is not used."""
    filled = visible.mean(0) / SIZE**2
    return np.select([filled >= 0.035, filled >= 0.009], [2, 1], 0)


def target_grades(visible: NDArray[np.int64], mentioned: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The clip's topic: mentioned and often visible. visible: [frames, labels] pixels; mentioned: [labels]."""
    steadiness = (visible >= SEEN_PIXELS).mean(0)
    return np.select([mentioned & (steadiness >= 0.5), mentioned | (steadiness >= 0.75)], [2, 1], 0)


def draw_clip(world: World, domain: str, name: str, root: Path, rng: Generator) -> Clip:
    """Draw one clip of the `source` or `target` domain and write its frames under `root/frames/name`."""
    candidates = rng.permutation(len(NOUNS))[:LABELS]
    scene = str(rng.choice(list(SCENES)))
    present = rng.permutation(LABELS)[: rng.integers(5 if domain == "source" else 6, 9)]
    radii = np.array([rng.uniform(*RADII[rng.choice(3, p=RADIUS_SHARES)]) for _ in present])
    seen_in = np.array([rng.permutation(FRAMES) < rng.integers(1, FRAMES + 1) for _ in present])
    visible = np.zeros((FRAMES, LABELS), dtype=np.int64)
    images = []
    for frame in range(FRAMES):
        here = np.flatnonzero(seen_in[:, frame])
        picture, pixels = draw_frame(world, candidates[present[here]].tolist(), radii[here], scene, rng)
        visible[frame, present[here]] = pixels
        images.append(_write_picture(root, f"frames/{name}/{frame:04d}.jpg", picture))
    absent = np.setdiff1d(np.arange(LABELS), present)
    if domain == "source":
        # Words are drawn from all candidates, so that a mention does not reveal what is in the picture.
        words = rng.permutation(LABELS)[: rng.integers(3, 5)]
        description = f"a {scene} video with " + " , ".join(NOUNS[candidates[word]] for word in words)
    else:
        words = np.concatenate(
            [rng.permutation(present)[: rng.integers(2, 5)], rng.permutation(absent)[: rng.integers(1, 3)]]
        )
        words = rng.permutation(words)
        first, second, *others = [NOUNS[candidates[word]] for word in words]
        description = (
            f"this story is about the {first} and the {second} in the {scene} . there is also {' and '.join(others)}"
        )
    mentioned = np.isin(np.arange(LABELS), words)
    grade = source_grades if domain == "source" else target_grades
    return Clip(
        id=name,
        labels=tuple(NOUNS[noun] for noun in candidates),
        grades=grade(visible, mentioned),
        description=description,
        filename=f"{name}.mp4",
        images=tuple(images),
    )


def draw_captioned_frame(world: World, name: str, root: Path, rng: Generator) -> Clip:
    """Draw one ungraded frame of 1 to 4 objects with a caption that names them all."""
    nouns = rng.permutation(len(NOUNS))[: rng.integers(1, 5)].tolist()
    radii = np.array([rng.uniform(*RADII[rng.choice(3, p=RADIUS_SHARES)]) for _ in nouns])
    scene = str(rng.choice(list(SCENES)))
    picture, _ = draw_frame(world, nouns, radii, scene, rng)
    image = _write_picture(root, f"frames/pretrain/{name}.jpg", picture)
    things = " and ".join(f"a {NOUNS[noun]}" for noun in nouns)
    return Clip(id=name, labels=(), description=f"a picture of {things} on the {scene}", images=(image,))


def annotate_pairs(clip: Clip, rng: Generator, drawn_pairs: int = PAIRS_DRAWN) -> Clip:
    """Draw annotated pairs: of `drawn_pairs` random label pairs, those with different grades, as (better, worse)."""
    every_pair = np.array([(a, b) for a in range(LABELS) for b in range(a)])
    drawn = every_pair[rng.permutation(len(every_pair))[:drawn_pairs]]
    grades = graded(clip)[drawn]
    ordered = np.where(grades[:, :1] > grades[:, 1:], drawn, drawn[:, ::-1])
    return replace(clip, pairs=ordered[grades[:, 0] != grades[:, 1]])


def write_mini(root: Path, seed: int, sizes: SplitSizes = SIZES) -> None:
    """Write the whole folder: annotation files, frames, and captioned frames for pretraining."""
    world_seed, *split_seeds, shares_seed = np.random.SeedSequence(seed).spawn(2 + len(sizes))
    world = World.draw(np.random.default_rng(world_seed))
    rngs = {split: np.random.default_rng(s) for split, s in zip(sizes, split_seeds, strict=True)}
    progress = tqdm(total=sum(sizes.values()), desc="drawing clips", unit="clip", disable=None)

    def draw(split: str) -> list[Clip]:
        domain = "source" if split == "source" else "target"
        clips = []
        for number in range(sizes[split]):
            clips.append(draw_clip(world, domain, f"{split}-{number:04d}", root, rngs[split]))
            progress.update()
        return clips

    target = draw("target")
    annotated = [annotate_pairs(clip, rngs["target"]) for clip in target]
    write_clips(root / annotations.SOURCE_TRAIN, draw("source"))
    write_clips(root / annotations.TARGET_TRAIN, target)
    write_clips(root / annotations.TARGET_PAIRS, [clip for clip in annotated if len(clip.pairs)])
    for share, pairs in OTHER_SHARES.items():
        # The same generator for each, so that a smaller share is part of a larger one.
        rng = np.random.default_rng(shares_seed)
        annotated = [annotate_pairs(clip, rng, pairs) for clip in target]
        path = root / annotations.PAIRS_OF_SHARE.format(share=share)
        write_clips(path, [clip for clip in annotated if len(clip.pairs)])
    write_clips(root / annotations.VALIDATION, draw("validation"))
    write_clips(root / annotations.TEST, draw("test"))
    captioned = []
    for number in range(sizes["pretraining"]):
        captioned.append(draw_captioned_frame(world, f"{number:05d}", root, rngs["pretraining"]))
        progress.update()
    write_clips(root / annotations.CAPTIONS, captioned)
    progress.close()


def write_table(root: Path, seed: int, clips: int) -> None:
    """Write target clips as a user's table for `lr2ppo convert`: table.csv and frames."""
    rng = np.random.default_rng(seed)
    world = World.draw(rng)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "table.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["clip", "frames", "description", "label", "grade"])
        for number in tqdm(range(clips), desc="drawing clips", unit="clip", disable=None):
            clip = draw_clip(world, "target", f"clip-{number:03d}", root, rng)
            for label, grade in zip(clip.labels, graded(clip).tolist(), strict=True):
                table.writerow([clip.id, f"frames/{clip.id}", clip.description, label, grade])


def _write_picture(root: Path, name: str, picture: Picture) -> str:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, quality=90)
    return name
