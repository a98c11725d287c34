"""The probability that a label is relevant, from a ranker's score, and how reliable such probabilities are."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from lr2ppo.evaluation.scoring import Scores
from lr2ppo.runs.records import STEEPEST, Calibration

# The lowest grade of a relevant label, whatever the highest grade of the scale is.
RELEVANT = 1
BINS = 10


def fit_calibration(scores: Sequence[Scores], grades: Sequence[NDArray[np.int64]]) -> Calibration | None:
    """Fit how scores become probabilities of relevance; None unless relevant labels score higher than others.

    Shapes, one entry per clip: scores: [labels], 32-bit numbers; grades: [labels]. Beta calibration (Kull et al. 2017,
    "Beta calibration", AISTATS): logistic regression with two slopes of at least 0, one for low and one for high
    scores. Its targets are smoothed (Platt 1999), so that the slopes are finite if the scores separate the labels.
    """
    flat, relevant = np.concatenate(scores), np.concatenate(grades) >= RELEVANT
    positive, negative = np.count_nonzero(relevant), np.count_nonzero(~relevant)
    if not positive or not negative or np.ptp(flat) == 0 or flat[relevant].mean() <= flat[~relevant].mean():
        return None
    mean, deviation = float(flat.mean()), float(flat.std())
    terms = np.stack([*_slope_terms((flat - mean) / deviation), np.ones(len(flat))])
    targets = np.where(relevant, (positive + 1) / (positive + 2), 1 / (negative + 2))

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The cross-entropy, and its gradient."""
        logits = weights @ terms
        return float(-(log_expit(-logits) + targets * logits).mean()), terms @ (expit(logits) - targets) / len(flat)

    bounds = [(0, STEEPEST), (0, STEEPEST), (None, None)]
    found = minimize(loss, [1.0, 1.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14})
    slope_below, slope_above, intercept = found.x.tolist()
    return Calibration(
        mean=mean,
        deviation=deviation,
        slope_below=slope_below,
        slope_above=slope_above,
        intercept=intercept,
        clips=len(scores),
        labels=len(flat),
    )


def relevance_probabilities(calibration: Calibration, scores: Scores) -> Scores:
    """Return the probability that labels of these scores are relevant; higher for a higher score."""
    standardized = (np.asarray(scores, dtype=np.float64) - calibration.mean) / calibration.deviation
    below, above = _slope_terms(standardized)
    logits = calibration.slope_below * below + calibration.slope_above * above + calibration.intercept
    probabilities: Scores = expit(logits)
    return probabilities


def _slope_terms(standardized: Scores) -> tuple[Scores, Scores]:
    """What the slopes of the log-odds multiply: a term that rises for low scores, and one that rises for high ones."""
    return log_expit(standardized), -log_expit(-standardized)


def describe_reliability(
    calibration: Calibration, scores: Sequence[Scores], grades: Sequence[NDArray[np.int64]]
) -> dict[str, Any]:
    """Return the part of `results.json` about a run's probabilities.

    Shapes as in `fit_calibration`. `bins` are of equal width, empty ones left out; `calibration_error` is the mean
    distance of predicted and observed share over labels (ECE; Guo et al. 2017), `brier` the mean squared error, and
    `relevant` the share of relevant labels.
    """
    predicted = relevance_probabilities(calibration, np.concatenate(scores))
    relevant = np.concatenate(grades) >= RELEVANT
    numbers = np.minimum((BINS * predicted).astype(np.int64), BINS - 1)
    bins = [
        {
            "predicted": float(predicted[numbers == number].mean()),
            "observed": float(relevant[numbers == number].mean()),
            "labels": int(np.count_nonzero(numbers == number)),
        }
        for number in np.unique(numbers)
    ]
    error = sum(each["labels"] * abs(each["predicted"] - each["observed"]) for each in bins) / len(predicted)
    return {
        "calibration_error": error,
        "brier": float(np.square(predicted - relevant).mean()),
        "relevant": float(relevant.mean()),
        "bins": bins,
    }


def reliability_line(reliability: Mapping[str, Any]) -> str:
    """Say how reliable probabilities are, as from `describe_reliability`, in one line."""
    share = reliability["relevant"]
    return (
        f"probabilities of relevance: calibration error {reliability['calibration_error']:.3f}, Brier score "
        f"{reliability['brier']:.3f} ({share * (1 - share):.3f} if each were the share of relevant labels, {share:.3f})"
    )
