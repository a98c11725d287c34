"""The probability that a label is relevant: what it is fitted to, and how its reliability is measured."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from lr2ppo.evaluation.relevance import describe_reliability, fit_calibration, relevance_probabilities
from lr2ppo.runs.records import Calibration

Lists = tuple[list[NDArray[np.float64]], list[NDArray[np.int64]]]
# Of 32-bit models: with ties, tiny differences, and numbers near the largest.
scores_of_models = st.one_of(
    st.integers(-2, 2).map(float),
    st.floats(-1, 1, width=32),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


@st.composite
def clips(draw: st.DrawFn) -> Lists:
    labels = st.lists(st.tuples(scores_of_models, st.integers(0, 10)), min_size=1, max_size=12)
    drawn = draw(st.lists(labels, min_size=1, max_size=6))
    return [np.array([score for score, _ in own]) for own in drawn], [
        np.array([grade for _, grade in own]) for own in drawn
    ]


def draw_clips(number: int, slope: float = 2.0) -> Lists:
    """Clips whose labels are relevant with the probability `sigmoid(slope * score - 1)`; grades go up to 4."""
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=20) for _ in range(number)]
    relevant = [rng.random(20) < 1 / (1 + np.exp(1 - slope * own)) for own in scores]
    return scores, [own * rng.integers(1, 5, size=20) for own in relevant]


@settings(deadline=None)
@given(clips(), st.lists(scores_of_models, min_size=2, max_size=9))
def test_probabilities_rise_with_scores_whatever_they_are_fitted_to(found: Lists, others: list[float]) -> None:
    calibration = fit_calibration(*found)
    scores, relevant = np.concatenate(found[0]), np.concatenate(found[1]) > 0
    if relevant.all() or not relevant.any() or np.ptp(scores) == 0:
        assert calibration is None
    if calibration is None:
        return
    assert scores[relevant].mean() > scores[~relevant].mean()
    probabilities = relevance_probabilities(calibration, np.sort([*scores, *others]))
    assert np.isfinite(probabilities).all()
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1
    assert np.diff(probabilities).min() >= -1e-12
    # On the whole, they are as many as the labels they are fitted to.
    own = relevance_probabilities(calibration, scores)
    smoothed = [(relevant.sum() + 1) / (relevant.sum() + 2), 1 / ((~relevant).sum() + 2)]
    assert own.mean() == pytest.approx(np.where(relevant, *smoothed).mean(), abs=1e-3)
    assert own[scores.argmin()] < own[scores.argmax()]


def test_without_a_relevant_label_and_an_irrelevant_one_or_for_a_ranker_below_chance_there_is_none() -> None:
    scores, grades = draw_clips(9)
    assert fit_calibration(scores, grades) is not None
    for others in ([0 * own for own in grades], [own + 1 for own in grades]):
        assert fit_calibration(scores, others) is None
    assert fit_calibration([-own for own in scores], grades) is None
    assert fit_calibration([np.full(20, 0.1)] * 9, grades) is None


def test_two_scores_get_the_smoothed_shares_of_relevant_labels() -> None:
    scores, grades = np.array([0.0] * 4 + [1.0] * 4), np.array([0, 0, 0, 1, 2, 0, 1, 2])
    calibration = fit_calibration([scores], [grades])
    assert calibration is not None
    # 4 of 8 are relevant, so targets are 5/6 and 1/6: (5 + 3) / 24 at score 0.
    np.testing.assert_allclose(relevance_probabilities(calibration, np.array([0.0, 1.0])), [1 / 3, 2 / 3], atol=1e-4)


@pytest.mark.parametrize("slope", [0.3, 2.0, 12.0])
def test_the_fitted_probabilities_are_those_by_which_labels_were_drawn(slope: float) -> None:
    calibration = fit_calibration(*draw_clips(2000, slope))
    assert calibration is not None
    found = relevance_probabilities(calibration, np.linspace(-2, 2, 9))
    np.testing.assert_allclose(found, 1 / (1 + np.exp(1 - slope * np.linspace(-2, 2, 9))), atol=0.03)


@given(st.floats(-30, 30), st.floats(-2, 2))
def test_the_scale_of_the_scores_changes_no_probability(exponent: float, shift: float) -> None:
    """Scores of stage 3 spread over a few hundredths, those of stage 1 over whole grades."""
    scores, grades = draw_clips(5)
    scaled = [10**exponent * (own + shift) for own in scores]
    calibration, other = fit_calibration(scores, grades), fit_calibration(scaled, grades)
    assert calibration is not None
    assert other is not None
    wanted = relevance_probabilities(calibration, scores[0])
    np.testing.assert_allclose(relevance_probabilities(other, scaled[0]), wanted, atol=1e-4)


def test_reliability_is_that_of_scikit_learn() -> None:
    scores, grades = draw_clips(40)
    calibration = fit_calibration(*draw_clips(8, slope=5.0))
    assert calibration is not None
    found = describe_reliability(calibration, scores, grades)
    relevant, predicted = np.concatenate(grades) > 0, relevance_probabilities(calibration, np.concatenate(scores))
    observed, mean = calibration_curve(relevant, predicted, n_bins=10)
    bins = found["bins"]
    np.testing.assert_allclose([each["observed"] for each in bins], observed)
    np.testing.assert_allclose([each["predicted"] for each in bins], mean)
    sizes = np.array([each["labels"] for each in bins])
    assert sizes.sum() == len(relevant)
    assert found["brier"] == pytest.approx(brier_score_loss(relevant, predicted))
    assert found["calibration_error"] == pytest.approx((sizes * np.abs(observed - mean)).sum() / len(relevant))
    assert found["relevant"] == relevant.mean()


@pytest.mark.parametrize(
    "damage",
    [{"deviation": 0.0}, {"slope_above": -1.0}, {"intercept": float("nan")}, {"mean": "0.1"}, {"labels": None}],
)
def test_a_calibration_that_would_turn_the_order_around_or_give_no_number_is_refused(damage: dict[str, object]) -> None:
    calibration = fit_calibration(*draw_clips(9))
    assert calibration is not None
    valid = calibration.model_dump()
    assert Calibration.model_validate(valid) == calibration
    with pytest.raises(ValidationError, match=next(iter(damage))):
        Calibration.model_validate(valid | damage)
