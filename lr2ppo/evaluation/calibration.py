"""How far a reward model's judgement of label pairs can be trusted: accuracy by grade gap, and calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr2ppo.evaluation.metrics import bootstrap_mean

BINS = 10

Margins = NDArray[np.float64]


def describe_judgement(
    grades: Sequence[NDArray[np.int64]], margins: Sequence[Margins], temperature: float, samples: int, seed: int
) -> dict[str, Any]:
    """Accuracy by grade gap with 95 % intervals over clips, and how often a preference of each sureness is right.

    Shapes, a clip each: grades: [labels]; margins: [2, pairs] as of `scoring.judge_clips`. A pair's margin is the mean
    over both ways to show it; a preference is as sure as `sigmoid(|margin| / temperature)`.
    """
    gaps, signed = zip(*(_judged(row, judged) for row, judged in zip(grades, margins, strict=True)), strict=True)
    largest = max((int(gap.max(initial=0)) for gap in gaps), default=0)
    by_gap = [
        _accuracy(gap, [own[gaps_of == gap] for gaps_of, own in zip(gaps, signed, strict=True)], samples, seed)
        for gap in range(1, largest + 1)
    ]
    return {"temperature": temperature, "by_gap": by_gap, "calibration": calibrate(np.concatenate(signed), temperature)}


def calibrate(signed: Margins, temperature: float) -> list[dict[str, float]]:
    """Bins of preferences by how sure they are: mean sureness, share of them that is right, and their number.

    Shapes: signed: [pairs], margins of the better label over the worse one.
    """
    sureness = 1 / (1 + np.exp(-np.abs(signed) / temperature))
    place = np.minimum((2 * BINS * (sureness - 0.5)).astype(np.int64), BINS - 1)
    right = (signed > 0) + 0.5 * (signed == 0)
    return [
        {
            "predicted": float(sureness[place == number].mean()),
            "observed": float(right[place == number].mean()),
            "pairs": int((place == number).sum()),
        }
        for number in range(BINS)
        if (place == number).any()
    ]


def _judged(grades: NDArray[np.int64], margins: Margins) -> tuple[NDArray[np.int64], Margins]:
    """The grade gap of a clip's pairs of different grades, and the margin of the better label of each."""
    first, second = np.triu_indices(len(grades), 1)
    gap = grades[first] - grades[second]
    better = np.sign(gap) * margins.mean(0)
    return np.abs(gap)[gap != 0], better[gap != 0]


def _accuracy(gap: int, signed: Sequence[Margins], samples: int, seed: int) -> Mapping[str, float]:
    shares = np.array([np.mean((own > 0) + 0.5 * (own == 0)) if len(own) else np.nan for own in signed])
    return {"gap": gap, "pairs": sum(map(len, signed)), **asdict(bootstrap_mean(shares, samples, seed))}
