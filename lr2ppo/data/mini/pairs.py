"""Pair files of many amounts of annotation, drawn from the pairs as annotators judge them.

Here a *judged clip* has in `pairs` every pair that annotators would order, as they would order it, so that all files
agree on a pair.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from lr2ppo.data import annotations
from lr2ppo.data.annotations import Clip, write_clips
from lr2ppo.data.mini.drawing import Generator

# Clips and pairs a clip, smallest first: each is part of the next.
REGIMES = ((40, 5), (100, 10), (300, 20))
# Of this one there is a second file, with a quarter of the pairs reversed.
FLIPPED = (100, 10)
FLIPPED_SHARE = 0.25
# Its own stream of random numbers: the regimes change nothing else that a seed draws, and can be added to a folder.
REGIMES_STREAM = 1000


def draw_pairs(judged: Clip, shown: int, rng: Generator) -> Clip:
    """Keep the pairs of a judged clip that are among `shown` random pairs of its labels."""
    labels = len(judged.labels)
    every_pair = np.array([(a, b) for a in range(labels) for b in range(a)])
    drawn = every_pair[rng.permutation(len(every_pair))[:shown]]
    is_better = np.zeros((labels, labels), dtype=bool)
    is_better[tuple(judged.pairs.T)] = True
    first_wins, second_wins = is_better[tuple(drawn.T)], is_better[tuple(drawn[:, ::-1].T)]
    ordered = np.where(first_wins[:, None], drawn, drawn[:, ::-1])
    return replace(judged, pairs=ordered[first_wins | second_wins])


def write_annotated(path: Path, clips: Iterable[Clip]) -> None:
    """Write a pair file of the clips that have pairs."""
    write_clips(path, [clip for clip in clips if len(clip.pairs)])


def write_regimes(root: Path, judged: Sequence[Clip], seed: int) -> None:
    """Write the pair files of `REGIMES` from the judged target clips of the folder that this seed made.

    Fewer clips or pairs than a regime's are all taken.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(REGIMES_STREAM,)))
    order = rng.permutation(len(judged))
    drawn = [replace(judged[clip], pairs=rng.permutation(judged[clip].pairs)) for clip in order]
    for clips, pairs in REGIMES:
        chosen = [replace(clip, pairs=clip.pairs[:pairs]) for clip in drawn[:clips]]
        write_annotated(root / annotations.PAIRS_OF_REGIME.format(regime=f"{clips}x{pairs}"), chosen)
        if (clips, pairs) == FLIPPED:
            name = f"{clips}x{pairs}_flipped{FLIPPED_SHARE:.0%}".removesuffix("%")
            write_annotated(root / annotations.PAIRS_OF_REGIME.format(regime=name), reverse_some(chosen, rng))


def reverse_some(clips: Sequence[Clip], rng: Generator) -> list[Clip]:
    """Reverse a random `FLIPPED_SHARE` of all the clips' pairs."""
    pairs = np.concatenate([clip.pairs for clip in clips])
    reversed_ = rng.permutation(len(pairs))[: round(FLIPPED_SHARE * len(pairs))]
    pairs[reversed_] = pairs[reversed_, ::-1]
    ends = np.cumsum([len(clip.pairs) for clip in clips])
    return [replace(clip, pairs=own) for clip, own in zip(clips, np.split(pairs, ends[:-1]), strict=True)]
