"""How reliable a reward model's preferences are: accuracy by grade gap, and calibration."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lr2ppo.evaluation.metrics import bootstrap_mean

BINS = 10

Margins = NDArray[np.float64]


def describe_reward_model(
    grades: Sequence[NDArray[np.int64]], margins: Sequence[Margins], temperature: float, samples: int, seed: int
) -> dict[str, Any]:
    """Return accuracy by grade gap with 95 % intervals over clips, and accuracy by confidence.

    Shapes, one entry per clip: grades: [labels]; margins: [2, pairs] as from `scoring.clip_margins`. A pair's margin is
    the mean over both ways to show it; its confidence is `sigmoid(|margin| / temperature)`.
    """
    gaps, signed = zip(*(_signed_margins(row, own) for row, own in zip(grades, margins, strict=True)), strict=True)
    largest = max((int(gap.max(initial=0)) for gap in gaps), default=0)
    by_gap = [
        _accuracy(gap, [own[gaps_of == gap] for gaps_of, own in zip(gaps, signed, strict=True)], samples, seed)
        for gap in range(1, largest + 1)
    ]
    return {
        "temperature": temperature,
        "by_gap": by_gap,
        "calibration": calibration_bins(np.concatenate(signed), temperature),
    }


def calibration_bins(signed: Margins, temperature: float) -> list[dict[str, float]]:
    """Bin preferences by confidence: mean confidence, accuracy and number of pairs of each bin.

    Shapes: signed: [pairs], margins of the better label over the worse one.
    """
    confidence = 1 / (1 + np.exp(-np.abs(signed) / temperature))
    bins = np.minimum((2 * BINS * (confidence - 0.5)).astype(np.int64), BINS - 1)
    right = (signed > 0) + 0.5 * (signed == 0)
    return [
        {
            "predicted": float(confidence[bins == number].mean()),
            "observed": float(right[bins == number].mean()),
            "pairs": int((bins == number).sum()),
        }
        for number in range(BINS)
        if (bins == number).any()
    ]


def _signed_margins(grades: NDArray[np.int64], margins: Margins) -> tuple[NDArray[np.int64], Margins]:
    """The grade gap of a clip's pairs of different grades, and the margin of each pair's better label."""
    first, second = np.triu_indices(len(grades), 1)
    gap = grades[first] - grades[second]
    better = np.sign(gap) * margins.mean(0)
    return np.abs(gap)[gap != 0], better[gap != 0]


def _accuracy(gap: int, signed: Sequence[Margins], samples: int, seed: int) -> Mapping[str, float]:
    shares = np.array([np.mean((own > 0) + 0.5 * (own == 0)) if len(own) else np.nan for own in signed])
    return {"gap": gap, "pairs": sum(map(len, signed)), **asdict(bootstrap_mean(shares, samples, seed))}
