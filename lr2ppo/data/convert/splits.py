"""Split a table's clips into training and held-out clips, and draw the pairs for the reward model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lr2ppo.data.annotations import better_worse_pairs
from lr2ppo.data.convert.table import TableClip
from lr2ppo.errors import UserError

Pairs = NDArray[np.int64]


@dataclass(frozen=True)
class Splits:
    """The clips of each split.

    `source` is for stage 1; with one domain only, it is the graded part of `train`. `left_out` are the unusable clips
    of held-out groups: without grades, or in the source domain.
    """

    source: list[TableClip]
    train: list[TableClip]
    validation: list[TableClip]
    test: list[TableClip]
    left_out: list[TableClip]


def draw_splits(
    clips: Sequence[TableClip], validation_share: float, test_share: float, rng: np.random.Generator
) -> Splits:
    """Hold out shares of the groups (without groups: of the clips) with graded target clips, at least one for each.

    Raises `UserError` if too few remain for one of the files.
    """
    has_source = any(clip.is_source for clip in clips)
    candidates = list(dict.fromkeys(clip.unit for clip in clips if clip.is_graded and not clip.is_source))
    others = {clip.unit for clip in clips if not clip.is_source}.difference(candidates)
    for_test, for_validation = (max(1, round(share * len(candidates))) for share in (test_share, validation_share))
    # Stage 1 needs graded clips; a source domain has its own.
    least = for_test + for_validation + (0 if has_source and others else 1)
    if len(candidates) < least:
        raise UserError(
            f"found {len(candidates)} {'target ' * has_source}clips (or groups of them) with grades, wanted at least "
            f"{least}: {for_validation} for validation, {for_test} for test and the rest for training; grade more, "
            "or lower --validation-share and --test-share"
        )
    drawn = [candidates[i] for i in rng.permutation(len(candidates))]
    test, validation = set(drawn[:for_test]), set(drawn[for_test : for_test + for_validation])
    kept = [clip for clip in clips if clip.unit not in test | validation]
    train = [clip for clip in kept if not clip.is_source]
    source = [clip for clip in kept if (clip.is_source if has_source else clip.is_graded)]
    useful = [clip for clip in clips if clip.is_graded and not clip.is_source]
    test_clips, validation_clips = ([clip for clip in useful if clip.unit in units] for units in (test, validation))
    used = {clip.id for clip in [*source, *train, *validation_clips, *test_clips]}
    splits = Splits(source, train, validation_clips, test_clips, [clip for clip in clips if clip.id not in used])
    if not source:
        raise UserError("every source clip is in a held-out group; give more groups, or another --seed")
    if not any(len(set(clip.grades)) > 1 for clip in validation_clips):
        raise UserError(
            "no clip drawn for validation has labels of different grades, needed to choose the best weights; "
            "raise --validation-share, or give another --seed"
        )
    return splits


def draw_pairs(clips: Sequence[TableClip], share: float, rng: np.random.Generator) -> list[Pairs]:
    """Pairs (better, worse) of each clip: a share of all pairs of different grades, at least one, in the list's order.

    Clips with preferences keep these, and no others are drawn. Raises `UserError` if there is no pair.
    """
    drawable = [_drawable_pairs(clip) for clip in clips]
    counts = [len(pairs) for pairs in drawable]
    total = sum(counts)
    wanted = max(1, round(share * total)) if share > 0 and total else 0
    is_drawn = np.zeros(total, dtype=bool)
    is_drawn[rng.permutation(total)[:wanted]] = True
    starts = np.cumsum([0, *counts])
    pairs = [
        np.array(clip.preferences, dtype=np.int64) if clip.preferences else own[is_drawn[start : start + len(own)]]
        for clip, own, start in zip(clips, drawable, starts[:-1], strict=True)
    ]
    if not any(map(len, pairs)):
        raise UserError(
            "no training clip has a pair of labels of different grades or a preference, which the reward model needs; "
            "grade more target clips, or give --preferences FILE"
        )
    return pairs


def _drawable_pairs(clip: TableClip) -> Pairs:
    """The pairs that may be drawn: all of different grades, none if the clip has preferences."""
    if clip.preferences or not clip.is_graded:
        return np.empty((0, 2), dtype=np.int64)
    return better_worse_pairs(np.array(clip.grades))
