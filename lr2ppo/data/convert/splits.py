"""Split a table's clips into training and held-out clips, and draw the pairs for the reward model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lr2ppo.data.annotations import count_pairs, draw_numbers, pick_pairs
from lr2ppo.data.convert.table import TableClip
from lr2ppo.errors import UserError

Pairs = NDArray[np.int64]
# The annotation file holds them all, and a stage reads it at once.
MOST_PAIRS = 4_000_000


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

    Clips with preferences keep these, and no others are drawn. Raises `UserError` if there is no pair, or if there are
    very many.
    """
    grades = [_drawable_grades(clip) for clip in clips]
    ends = np.cumsum([count_pairs(own) for own in grades])
    total = int(ends[-1]) if clips else 0
    wanted = max(1, round(share * total)) if share > 0 and total else 0
    if wanted > MOST_PAIRS:
        raise UserError(
            f"found {total:,} pairs of labels of different grades, of which {wanted:,} would be drawn, wanted at most "
            f"{MOST_PAIRS:,}; lower --pair-share to {MOST_PAIRS / total:.2g} or less"
        )
    drawn = np.sort(draw_numbers(total, wanted, rng))
    starts = np.append(0, ends)
    places = np.searchsorted(drawn, starts)
    pairs = [
        np.array(clip.preferences, dtype=np.int64)
        if clip.preferences
        else pick_pairs(own, drawn[places[number] : places[number + 1]] - starts[number])
        for number, (clip, own) in enumerate(zip(clips, grades, strict=True))
    ]
    if not any(map(len, pairs)):
        raise UserError(
            "no training clip has a pair of labels of different grades or a preference, which the reward model needs; "
            "grade more target clips, or give --preferences FILE"
        )
    return pairs


def _drawable_grades(clip: TableClip) -> NDArray[np.int64]:
    """The grades whose pairs may be drawn: none if the clip is ungraded or has preferences."""
    return np.array([] if clip.preferences or not clip.is_graded else clip.grades, dtype=np.int64)
