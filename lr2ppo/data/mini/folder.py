"""A generated world as a folder in LRMovieNet's layout, or as a user's table."""

import csv
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm import tqdm

from lr2ppo.data import annotations
from lr2ppo.data.annotations import Clip, graded, write_clips
from lr2ppo.data.mini.drawing import Generator, Things, draw_captioned_frame
from lr2ppo.data.mini.pairs import draw_pairs, write_annotated, write_regimes
from lr2ppo.data.mini.uniform import UniformWorld
from lr2ppo.data.mini.varied import VariedWorld

SplitSizes = dict[str, int]
SIZES: SplitSizes = {"source": 400, "target": 300, "validation": 60, "test": 150, "pretraining": 3000}
SHARE = 10
# A smaller share is part of a larger one.
OTHER_SHARES = (1, 2, 5, 20, 50)


class World(Protocol):
    """What a world must have: its things, how a clip is drawn and judged, and how many pairs a share of them is."""

    @property
    def things(self) -> Things: ...

    def draw_clip(self, domain: str, name: str, root: Path, rng: Generator) -> Clip: ...

    def pairs_of_share(self, share: int, labels: int) -> int: ...


WORLDS: dict[str, Callable[[Generator], World]] = {"uniform": UniformWorld.draw, "varied": VariedWorld.draw}


def write_mini(root: Path, seed: int, sizes: SplitSizes = SIZES, world: str = "uniform") -> None:
    """Write the whole folder: annotation files, frames, and captioned frames for pretraining."""
    world_seed, *split_seeds, shares_seed = np.random.SeedSequence(seed).spawn(2 + len(sizes))
    drawn = WORLDS[world](np.random.default_rng(world_seed))
    rngs = {split: np.random.default_rng(s) for split, s in zip(sizes, split_seeds, strict=True)}
    progress = tqdm(total=sum(sizes.values()), desc="drawing clips", unit="clip", disable=None)

    def draw(split: str) -> list[Clip]:
        domain = "source" if split == "source" else "target"
        clips = []
        for number in range(sizes[split]):
            clips.append(drawn.draw_clip(domain, f"{split}-{number:04d}", root, rngs[split]))
            progress.update()
        return clips

    target = draw("target")
    _write_share(root / annotations.TARGET_PAIRS, target, drawn, SHARE, rngs["target"])
    for share in OTHER_SHARES:
        # The same generator for each, so that a smaller share is part of a larger one.
        rng = np.random.default_rng(shares_seed)
        _write_share(root / annotations.PAIRS_OF_SHARE.format(share=share), target, drawn, share, rng)
    write_regimes(root, target, seed)
    _write_unpaired(root / annotations.TARGET_TRAIN, target)
    _write_unpaired(root / annotations.SOURCE_TRAIN, draw("source"))
    _write_unpaired(root / annotations.VALIDATION, draw("validation"))
    _write_unpaired(root / annotations.TEST, draw("test"))
    captioned = []
    for number in range(sizes["pretraining"]):
        captioned.append(draw_captioned_frame(drawn.things, f"{number:05d}", root, rngs["pretraining"]))
        progress.update()
    write_clips(root / annotations.CAPTIONS, captioned)
    progress.close()


def _write_share(path: Path, judged: Iterable[Clip], world: World, share: int, rng: Generator) -> None:
    write_annotated(path, [draw_pairs(c, world.pairs_of_share(share, len(c.labels)), rng) for c in judged])


def _write_unpaired(path: Path, judged: Iterable[Clip]) -> None:
    write_clips(path, [replace(clip, pairs=clip.pairs[:0]) for clip in judged])


def write_table(root: Path, seed: int, clips: int, world: str = "uniform") -> None:
    """Write target clips as a user's table for `lr2ppo convert`: table.csv and frames."""
    rng = np.random.default_rng(seed)
    drawn = WORLDS[world](rng)
    root.mkdir(parents=True, exist_ok=True)
    with (root / "table.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["clip", "frames", "description", "label", "grade"])
        for number in tqdm(range(clips), desc="drawing clips", unit="clip", disable=None):
            clip = drawn.draw_clip("target", f"clip-{number:03d}", root, rng)
            for label, grade in zip(clip.labels, graded(clip).tolist(), strict=True):
                table.writerow([clip.id, f"frames/{clip.id}", clip.description, label, grade])
