"""The uniform world: 20 labels a clip, 4 frames, one scale of grades, and annotators who agree with the grades.

Source clips are graded by how much of the picture a thing fills; target clips by whether the description says the clip
is about it and in how many frames it is visible.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lr2ppo.data.annotations import Clip, better_worse_pairs, graded
from lr2ppo.data.mini.drawing import SEEN_PIXELS, SIZE, Generator, Pixels, Things, draw_frames, draw_scene

NOUNS = (
    "anchor apple arrow basket bell boat book bottle bridge candle car chair clock cloud crown door drum feather fence "
    "flag flower guitar hammer hat house kite knife ladder lamp leaf moon mirror piano pillow rope ship star table "
    "tower wheel"
).split()
FRAMES = 4
LABELS = 20
# How many of a clip's 190 pairs annotators are shown, by the share of them in percent.
PAIRS_OF_SHARE = {10: 20, 1: 2, 2: 4, 5: 10, 20: 38, 50: 95}


@dataclass(frozen=True)
class UniformWorld:
    """A world of 40 things."""

    things: Things

    @classmethod
    def draw(cls, rng: Generator) -> "UniformWorld":
        return cls(Things.draw(NOUNS, rng))

    def pairs_of_share(self, share: int, labels: int) -> int:
        """How many pairs of a clip a share is, in percent."""
        return PAIRS_OF_SHARE[share]

    def draw_clip(self, domain: str, name: str, root: Path, rng: Generator) -> Clip:
        """Draw one clip of the `source` or `target` domain, with all its judged pairs; write its frames."""
        candidates = rng.permutation(len(NOUNS))[:LABELS]
        scene = draw_scene(rng)
        present = rng.permutation(LABELS)[: rng.integers(5 if domain == "source" else 6, 9)]
        images, visible = draw_frames(self.things, candidates, present, FRAMES, scene, name, root, rng)
        if domain == "source":
            # Words are drawn from all candidates, so that a mention does not reveal what is in the picture.
            words = rng.permutation(LABELS)[: rng.integers(3, 5)]
            description = f"a {scene} video with " + " , ".join(NOUNS[candidates[word]] for word in words)
        else:
            words = _draw_target_words(present, rng)
            first, second, *others = [NOUNS[candidates[word]] for word in words]
            description = (
                f"this story is about the {first} and the {second} in the {scene} . "
                f"there is also {' and '.join(others)}"
            )
        mentioned = np.isin(np.arange(LABELS), words)
        grade = source_grades if domain == "source" else target_grades
        clip = Clip(
            id=name,
            labels=tuple(NOUNS[noun] for noun in candidates),
            grades=grade(visible, mentioned),
            description=description,
            filename=f"{name}.mp4",
            images=images,
        )
        return judged_by_grades(clip)


def _draw_target_words(present: NDArray[np.int64], rng: Generator) -> NDArray[np.int64]:
    """Draw the labels that a target description names, visible and absent ones."""
    absent = np.setdiff1d(np.arange(LABELS), present)
    visible_words = rng.permutation(present)[: rng.integers(2, 5)]
    absent_words = rng.permutation(absent)[: rng.integers(1, 3)]
    return rng.permutation(np.concatenate([visible_words, absent_words]))


def source_grades(visible: Pixels, mentioned: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Dominance: what fills much of the picture. visible: [frames, labels] pixels; `mentioned` is not used."""
    filled = visible.mean(0) / SIZE**2
    return np.select([filled >= 0.035, filled >= 0.009], [2, 1], 0)


def target_grades(visible: Pixels, mentioned: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The clip's topic: mentioned and often visible. visible: [frames, labels] pixels; mentioned: [labels]."""
    steadiness = (visible >= SEEN_PIXELS).mean(0)
    return np.select([mentioned & (steadiness >= 0.5), mentioned | (steadiness >= 0.75)], [2, 1], 0)


def judged_by_grades(clip: Clip) -> Clip:
    """The clip with all its pairs of different grades, the higher grade first; raises ValueError without grades."""
    return replace(clip, pairs=better_worse_pairs(graded(clip)))
