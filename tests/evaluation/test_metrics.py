"""NDCG, its chance level, pair accuracy and bootstrap intervals."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torch import Tensor

from lr2ppo.evaluation.metrics import CUTOFFS, bootstrap_mean, chance_ndcg, fit_temperature, ndcg, pair_accuracy

CUTS = (1, 3, 5, 10, 20, None)
MODERATE = settings(deadline=None, max_examples=60)

List = tuple[list[float], list[int]]
cuts = st.sampled_from(CUTS)
grade_lists = st.lists(st.integers(0, 2), min_size=1, max_size=26)


@st.composite
def untied_lists(draw: st.DrawFn, min_size: int = 1) -> List:
    grades = draw(st.lists(st.integers(0, 2), min_size=min_size, max_size=26))
    return [float(score) for score in draw(st.permutations(range(len(grades))))], grades


@st.composite
def tied_lists(draw: st.DrawFn) -> List:
    grades = draw(grade_lists)
    return [float(draw(st.integers(0, 3))) for _ in grades], grades


def as_rows(scores: Sequence[float], grades: Sequence[int]) -> tuple[Tensor, Tensor]:
    return torch.tensor([scores], dtype=torch.float64), torch.tensor([grades])


def pad(lists: Sequence[List], score: float, grade: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, grades and mask; the padding has a score and a grade, so that using it shows."""
    width = max(len(grades) for _, grades in lists) + 2
    scores = torch.full((len(lists), width), score, dtype=torch.float64)
    grades = torch.full((len(lists), width), grade)
    mask = torch.zeros(len(lists), width, dtype=torch.bool)
    for row, (row_scores, row_grades) in enumerate(lists):
        scores[row, : len(row_scores)] = torch.tensor(row_scores, dtype=torch.float64)
        grades[row, : len(row_grades)] = torch.tensor(row_grades)
        mask[row, : len(row_grades)] = True
    return scores, grades, mask


def loop_ndcg(scores: Sequence[float], grades: Sequence[int], k: int | None) -> float:
    order = sorted(range(len(scores)), key=lambda position: -scores[position])
    ideal = sorted(grades, reverse=True)
    found = sum((2 ** grades[position] - 1) / math.log2(rank + 2) for rank, position in enumerate(order[:k]))
    best = sum((2**grade - 1) / math.log2(rank + 2) for rank, grade in enumerate(ideal[:k]))
    return found / best if best else 1.0


def loop_pair_accuracy(scores: Sequence[float], grades: Sequence[int]) -> float:
    points = [
        1.0 if scores[a] > scores[b] else 0.5 if scores[a] == scores[b] else 0.0
        for a, b in itertools.permutations(range(len(grades)), 2)
        if grades[a] > grades[b]
    ]
    return sum(points) / len(points) if points else math.nan


def test_ndcg_of_an_order_worked_out_by_hand() -> None:
    scores, grades = as_rows([3.0, 2.0, 1.0], [0, 2, 1])
    ideal = 3 + 1 / math.log2(3)
    assert ndcg(scores, grades).item() == pytest.approx((3 / math.log2(3) + 1 / 2) / ideal)
    assert ndcg(scores, grades, k=1).item() == 0.0
    assert ndcg(scores, grades, k=2).item() == pytest.approx(3 / math.log2(3) / ideal)


@MODERATE
@given(untied_lists(min_size=2).filter(lambda item: any(item[1])), cuts)
def test_ndcg_agrees_with_sklearn_where_no_scores_tie(item: List, k: int | None) -> None:
    scores, grades = as_rows(*item)
    gains = 2.0 ** grades.numpy() - 1
    assert ndcg(scores, grades, k=k).item() == pytest.approx(ndcg_score(gains, scores.numpy(), k=k), abs=1e-12)


@MODERATE
@given(st.lists(untied_lists(), min_size=1, max_size=4), cuts, st.sampled_from([0.0, math.inf, -math.inf, math.nan]))
def test_padding_does_not_change_the_ndcg_of_a_list(lists: list[List], k: int | None, filler: float) -> None:
    scores, grades, mask = pad(lists, filler)
    expected = [loop_ndcg(*item, k) for item in lists]
    torch.testing.assert_close(ndcg(scores, grades, mask, k), torch.tensor(expected, dtype=torch.float64))


@MODERATE
@given(tied_lists(), cuts)
def test_tied_labels_keep_the_given_order(item: List, k: int | None) -> None:
    assert ndcg(*as_rows(*item), k=k).item() == pytest.approx(loop_ndcg(*item, k), abs=1e-12)


def test_a_long_list_of_equal_scores_is_ranked_as_given() -> None:
    grades = torch.zeros(1, 200, dtype=torch.long)
    grades[0, 150] = 2
    assert ndcg(torch.zeros(1, 200), grades).item() == pytest.approx(1 / math.log2(152))


@MODERATE
@given(untied_lists(), cuts)
def test_ndcg_depends_only_on_the_order_of_the_scores(item: List, k: int | None) -> None:
    scores, grades = as_rows(*item)
    before = ndcg(scores, grades, k=k)
    for transformed in (3 * scores - 70, (scores / 5).exp(), scores.atan(), scores.float(), scores.long()):
        assert torch.equal(ndcg(transformed, grades, k=k), before)


@MODERATE
@given(grade_lists, cuts)
def test_ordering_by_grade_reaches_1_and_no_order_exceeds_it(grades: list[int], k: int | None) -> None:
    by_grade = [float(grade) for grade in grades]
    assert ndcg(*as_rows(by_grade, grades), k=k).item() == pytest.approx(1.0)
    worst = ndcg(*as_rows([-score for score in by_grade], grades), k=k).item()
    assert 0.0 <= worst <= 1.0 + 1e-12


@pytest.mark.parametrize("k", CUTS)
def test_ndcg_and_its_chance_level_are_1_where_every_grade_is_0(k: int | None) -> None:
    grades = torch.zeros(2, 5, dtype=torch.long)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    assert ndcg(torch.randn(2, 5), grades, mask, k).tolist() == [1.0, 1.0]
    assert chance_ndcg(grades, mask, k).tolist() == [1.0, 1.0]


@MODERATE
@given(untied_lists(), st.integers(0, 30))
def test_a_cut_beyond_the_list_means_the_whole_list(item: List, beyond: int) -> None:
    scores, grades = as_rows(*item)
    k = grades.shape[1] + beyond
    assert torch.equal(ndcg(scores, grades, k=k), ndcg(scores, grades))
    assert torch.equal(chance_ndcg(grades, k=k), chance_ndcg(grades))


def test_a_label_scored_minus_infinity_still_ranks_before_padding() -> None:
    grades = torch.tensor([[0, 0, 2]])
    mask = torch.tensor([[False, True, True]])
    assert ndcg(torch.tensor([[5.0, 1.0, -math.inf]]), grades, mask).item() == pytest.approx(1 / math.log2(3))


def test_ndcg_is_double_precision_for_scores_of_any_type() -> None:
    assert ndcg(torch.zeros(3, 4, dtype=torch.bfloat16), torch.ones(3, 4)).dtype == torch.float64
    assert chance_ndcg(torch.ones(3, 4)).dtype == torch.float64


def test_cutoffs_are_named_after_their_rank() -> None:
    assert list(CUTOFFS.values()) == list(CUTS)
    assert all(name == ("ndcg" if k is None else f"ndcg@{k}") for name, k in CUTOFFS.items())


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6), st.sampled_from([1, 2, 3, 5, 20, None]))
def test_chance_ndcg_is_the_mean_over_every_order(grades: list[int], k: int | None) -> None:
    orders = torch.tensor(list(itertools.permutations(range(len(grades)))), dtype=torch.float64)
    every = ndcg(orders, torch.tensor(grades).expand(len(orders), -1), k=k)
    assert chance_ndcg(torch.tensor([grades]), k=k).item() == pytest.approx(every.mean().item())


@MODERATE
@given(st.lists(untied_lists(), min_size=1, max_size=4), cuts)
def test_padding_does_not_change_the_chance_level_of_a_list(lists: list[List], k: int | None) -> None:
    _, grades, mask = pad(lists, 0.0)
    expected = torch.cat([chance_ndcg(torch.tensor([alone]), k=k) for _, alone in lists])
    torch.testing.assert_close(chance_ndcg(grades, mask, k), expected)


@MODERATE
@given(st.lists(tied_lists(), min_size=1, max_size=4), st.sampled_from([0.0, math.inf, math.nan]), st.integers(0, 2))
def test_pair_accuracy_counts_every_untied_pair_of_real_labels(lists: list[List], filler: float, grade: int) -> None:
    expected = torch.tensor([loop_pair_accuracy(*item) for item in lists], dtype=torch.float64)
    torch.testing.assert_close(pair_accuracy(*pad(lists, filler, grade)), expected, equal_nan=True)


def test_pair_accuracy_is_nan_where_all_grades_are_equal() -> None:
    accuracy = pair_accuracy(torch.randn(3, 4), torch.tensor([[0] * 4, [2] * 4, [0, 1, 0, 0]]))
    assert accuracy.isnan().tolist() == [True, True, False]


def test_pair_accuracy_without_a_mask_takes_every_label() -> None:
    scores, grades = torch.tensor([[3.0, 1.0, 2.0]]), torch.tensor([[2, 1, 0]])
    assert pair_accuracy(scores, grades).item() == pytest.approx(2 / 3)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.integers(0, 1000))
def test_bootstrap_interval_holds_the_mean_and_repeats_for_a_seed(values: list[float], seed: int) -> None:
    array = np.array(values)
    estimate = bootstrap_mean(array, samples=500, seed=seed)
    assert estimate.mean == pytest.approx(array.mean())
    assert estimate.low - 1e-9 <= estimate.mean <= estimate.high + 1e-9
    assert array.min() - 1e-9 <= estimate.low
    assert estimate.high <= array.max() + 1e-9
    assert bootstrap_mean(array, samples=500, seed=seed) == estimate


def test_bootstrap_of_another_seed_draws_other_clips() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_mean(values, samples=200, seed=1) != bootstrap_mean(values, samples=200, seed=2)


def test_bootstrap_leaves_nan_values_out() -> None:
    values = np.array([0.2, 0.9, 0.4, 0.7])
    with_gaps = np.array([np.nan, 0.2, 0.9, np.nan, 0.4, 0.7, np.nan])
    assert bootstrap_mean(with_gaps, seed=3) == bootstrap_mean(values, seed=3)


@pytest.mark.parametrize("values", [[], [np.nan, np.nan]])
def test_bootstrap_of_no_value_is_nan(values: list[float]) -> None:
    estimate = bootstrap_mean(np.array(values, dtype=np.float64))
    assert all(math.isnan(bound) for bound in (estimate.mean, estimate.low, estimate.high))


@pytest.mark.parametrize(("level", "deviations"), [(0.95, 1.960), (0.5, 0.6745)])
def test_bootstrap_interval_is_as_wide_as_its_level_says(level: float, deviations: float) -> None:
    values = np.random.default_rng(5).normal(3.0, 2.0, size=400)
    estimate = bootstrap_mean(values, samples=4000, level=level)
    error = values.std() / math.sqrt(len(values))
    assert estimate.low == pytest.approx(values.mean() - deviations * error, abs=0.15 * error)
    assert estimate.high == pytest.approx(values.mean() + deviations * error, abs=0.15 * error)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.1, 10.0), st.integers(0, 2**31))
def test_the_fitted_temperature_is_that_by_which_preferences_were_drawn(temperature: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = 3 * temperature * torch.randn(20_000, generator=generator).abs()
    right = torch.rand(20_000, generator=generator) < torch.sigmoid(size / temperature)
    found = fit_temperature(torch.where(right, size, -size))
    assert found == pytest.approx(temperature, rel=0.15)
