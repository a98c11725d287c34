"""Rows of runs are compared: intervals, differences, the best row, in words, as a table and as a CSV file."""

import csv
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from lr2ppo.errors import UserError
from lr2ppo.evaluation.comparison import (
    METRIC_NAMES,
    ClipKey,
    Comparison,
    Row,
    Run,
    compare,
    describe_best,
    describe_interval,
    describe_intervals,
    estimate_difference,
    estimate_row,
    name_rows,
)
from lr2ppo.evaluation.intervals import adjust_p, difference_of_rows, mean_over_runs_and_clips
from lr2ppo.evaluation.metrics import bootstrap_mean
from lr2ppo.evaluation.table import format_differences, format_table, write_csv
from tests.evaluation.coverage import Case, coverage

Values = NDArray[np.float64]


def make_run(name: str, values: Values, world: str = "") -> Run:
    clips = tuple(ClipKey(f"{world}clip {number}", ("a", "b"), (0, 1)) for number in range(len(values)))
    return Run(name, clips, dict.fromkeys(METRIC_NAMES, values))


def make_row(name: str, *runs: Values, own_clips: bool = False) -> Row:
    """A row of runs given by their values, the same in every metric, on the same clips or each on its own."""
    worlds = [f"world {number}/" if own_clips else "" for number in range(len(runs))]
    return Row(name, [make_run(f"{name}-{world}", values, world) for values, world in zip(runs, worlds, strict=True)])


def draw(mean: float, *shape: int, seed: int = 0, spread: float = 0.1) -> Values:
    return np.random.default_rng(seed).normal(mean, spread, shape).clip(0, 1)


@pytest.mark.parametrize(
    ("case", "run_sd"),
    [
        (Case(5, None, 300, True), 0.02),
        (Case(3, None, 300, True), 0.05),
        (Case(3, None, 150, False), 0.02),
        (Case(3, 3, 300, True), 0.05),
        (Case(3, 5, 300, True), 0.02),
        (Case(3, 1, 300, True), 0.02),
        (Case(3, 3, 150, False), 0.05),
    ],
    ids=str,
)
def test_95_percent_intervals_hold_the_true_mean_about_as_often(case: Case, run_sd: float) -> None:
    ours, with_independent_clips = coverage(case, run_sd, repetitions=2000)
    assert 0.9 <= ours <= 0.98
    assert with_independent_clips < 0.85


def test_one_run_has_a_bootstrap_interval_over_its_clips() -> None:
    first, second = draw(0.7, 40), draw(0.6, 40, seed=1)
    assert estimate_row(make_row("a", first), 300, 5)["ndcg"] == bootstrap_mean(first, 300, 5)
    found = estimate_difference(make_row("a", first), make_row("b", second), "ndcg", 300, 5)
    assert found.estimate == bootstrap_mean(first - second, 300, 5)
    assert "say nothing about other seeds" in describe_intervals([make_row("a", first)])


def test_the_interval_of_runs_on_the_same_clips_is_as_worked_out_by_hand() -> None:
    # Means: runs .4 and .5, clips .35 and .55. Mean squares: 2 * .005, 2 * .02, and 4 * .05^2 of the rest.
    values = np.array([[0.25, 0.55], [0.45, 0.55]])
    runs, clips, rest = 0.01, 0.04, 0.01
    variance = (runs + clips - rest) / 4
    # Satterthwaite's degrees of freedom are .9; the runs' own, 1, are the least.
    assert (runs + clips - rest) ** 2 / (runs**2 + clips**2 + rest**2) == pytest.approx(0.889, abs=0.001)
    found = mean_over_runs_and_clips(values).estimate
    reach = 12.7062 * variance**0.5
    assert (found.mean, found.low, found.high) == pytest.approx((0.45, 0.45 - reach, 0.45 + reach), abs=1e-5)


def test_runs_that_do_not_differ_leave_only_the_clips() -> None:
    values, others = draw(0.7, 40), draw(0.6, 40, seed=1)
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval()
    found = mean_over_runs_and_clips(np.stack([values] * 3)).estimate
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    wanted = stats.ttest_rel(values, others).confidence_interval()
    found = difference_of_rows(np.stack([values] * 3), np.stack([others] * 2)).estimate
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


def test_runs_with_their_own_clips_have_a_paired_t_test() -> None:
    first = [draw(mean, 20, seed=seed) for seed, mean in enumerate((0.7, 0.75, 0.8))]
    second = [draw(mean, 20, seed=seed) for seed, mean in enumerate((0.6, 0.7, 0.75), start=3)]
    rows = make_row("a", *first, own_clips=True), make_row("b", *second, own_clips=True)
    wanted = stats.ttest_rel([run.mean() for run in first], [run.mean() for run in second])
    found = estimate_difference(*rows, "ndcg", 50, 0)
    assert found.p == pytest.approx(wanted.pvalue)
    assert (found.estimate.low, found.estimate.high) == pytest.approx(tuple(wanted.confidence_interval()))
    assert found.above_zero > 0.5


def test_runs_that_differ_widen_the_interval_of_a_row_and_of_its_differences() -> None:
    alike = draw(0.7, 1, 50) + np.zeros((3, 1))
    unlike = alike + np.array([[-0.05], [0.0], [0.05]])
    one, others = draw(0.6, 1, 50, seed=1), draw(0.6, 2, 50, seed=2)
    widths = [
        [found.high - found.low for found in (mean_over_runs_and_clips(values).estimate, *differences)]
        for values in (alike, unlike)
        for differences in [[difference_of_rows(values, second).estimate for second in (one, others)]]
    ]
    assert all(narrow < 0.8 * wide for narrow, wide in zip(*widths, strict=True))


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([(1, 1), (3, 3), (3, 1), (2, 3)]), st.integers(0, 99))
def test_a_difference_turned_round_is_the_same_with_the_other_sign(runs: tuple[int, int], seed: int) -> None:
    first = make_row("a", *draw(0.6, runs[0], 25, seed=seed))
    second = make_row("b", *draw(0.62, runs[1], 25, seed=seed + 1))
    found = estimate_difference(first, second, "ndcg", 100, 0)
    turned = estimate_difference(second, first, "ndcg", 100, 0)
    assert found.above_zero + turned.above_zero == pytest.approx(1)
    assert found.p == pytest.approx(turned.p)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((-turned.estimate.high, -turned.estimate.low))
    assert found.estimate.low <= found.estimate.mean <= found.estimate.high


@pytest.mark.parametrize("runs", [1, 3])
def test_clips_without_a_value_are_left_out(runs: int) -> None:
    values = draw(0.7, runs, 20)
    gap = np.full((runs, 1), np.nan)
    with_gaps = make_row("a", *np.concatenate([values[:, :5], gap, values[:, 5:], gap], axis=1))
    without = make_row("b", *values)
    assert estimate_row(with_gaps, 100, 0) == estimate_row(without, 100, 0)
    nothing = estimate_row(make_row("c", *np.full((runs, 4), np.nan)), 100, 0)["pair_accuracy"]
    assert np.isnan([nothing.mean, nothing.low, nothing.high]).all()


def test_the_interval_of_a_row_stays_within_what_a_metric_can_be() -> None:
    found = estimate_row(make_row("a", np.array([0.9, 1.0]), np.array([1.0, 0.5])), 100, 0)["ndcg"]
    assert (found.low, found.high) == (0, 1)


def test_p_values_are_adjusted_for_their_number() -> None:
    assert adjust_p([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert adjust_p([0.7, 0.6]) == [1, 1]
    assert adjust_p([]) == []


def three_rows(seed: int = 0, gap: float = 0.1) -> list[Row]:
    """Rows `low`, `high` and `middle`, each `gap` above the one before it in quality."""
    of_clips = draw(0.0, 60, seed=seed, spread=0.05)
    return [
        make_row(name, draw(0.6 + place * gap, 60, seed=3 * seed + place, spread=0.04) + of_clips)
        for name, place in (("low", 0), ("high", 2), ("middle", 1))
    ]


def test_the_best_row_is_named_with_the_next_best_whatever_the_order_of_the_rows() -> None:
    told = {describe_best(compare(list(rows))) for rows in itertools.permutations(three_rows())}
    (words,) = told
    comparison = compare(three_rows())
    assert [row.name for row in comparison.ordered] == ["high", "middle", "low"]
    assert [(each.first.name, each.second.name) for each in comparison.contrasts] == [
        ("high", "middle"),
        ("high", "low"),
        ("middle", "low"),
    ]
    difference = comparison.contrasts[0].difference
    assert re.match(r"high orders best: NDCG\(all\) 0\.8\d\d, 0\.1\d\d above middle \(95 % interval 0\.0", words)
    assert describe_interval(difference) in words


def test_rows_that_cannot_be_told_apart_are_said_to_be_so_without_a_direction() -> None:
    first = draw(0.7, 30)
    words = describe_best(compare([make_row("a", first), make_row("b", first + draw(0.1, 30, seed=1) - 0.1)]))
    assert re.fullmatch(
        r"No difference between [ab] and [ab] can be seen with 30 clips: 0\.\d{3} "
        r"\(95 % interval -0\.\d{3} to \+0\.\d{3}\)\.",
        words,
    )
    low = make_row("low", first - 0.3)
    words = describe_best(compare([low, make_row("a", first), make_row("b", first + draw(0.1, 30, seed=1) - 0.1)]))
    assert words.startswith("No difference between ")
    assert re.search(r"[ab] is 0\.3\d\d above low \(95 % interval 0\.", words)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 999), st.sampled_from([0.0, 0.005, 0.01, 0.02]))
def test_no_row_is_called_better_where_the_interval_holds_0(seed: int, gap: float) -> None:
    comparison = compare(three_rows(seed, gap), samples=200)
    words = describe_best(comparison)
    for contrast in comparison.of_best():
        claimed = f"above {contrast.second.name} " in words
        assert not claimed or (not contrast.holds_zero and contrast.adjusted_p < 0.05)
    assert words.startswith("No difference") == any(not each.is_seen for each in comparison.of_best())


def test_an_interval_without_0_whose_adjusted_p_is_not_small_is_shown_with_that_p() -> None:
    # Ten rows, 45 differences: those of the best are seen by themselves, but could be the largest of 45 by chance.
    values = draw(0.5, 10, 40)
    values += 0.5 - values.mean(1, keepdims=True)
    values[9] += 0.055
    comparison = compare([make_row(f"row {number}", own) for number, own in enumerate(values)])
    nearest = comparison.of_best()[0]
    assert not nearest.holds_zero
    assert nearest.adjusted_p >= 0.05
    assert f", adjusted p {nearest.adjusted_p:.3f})" in describe_best(comparison)


def test_a_row_alone_is_described_by_its_own_interval() -> None:
    words = describe_best(compare([make_row("a", draw(0.7, 30))]))
    assert re.fullmatch(
        r"a orders the labels with an NDCG\(all\) of 0\.\d{3} \(95 % interval 0\.6\d+ to 0\.7\d+\)\.", words
    )


def test_rows_that_cannot_be_compared_are_refused() -> None:
    runs = draw(0.7, 2, 10)
    overlapping = Row("mixed", [make_run("a", runs[0]), make_run("b", runs[1][:9])])
    with pytest.raises(UserError, match="mixed: its runs were evaluated on some of the same clips, but not on all"):
        compare([overlapping])
    own = make_row("own", *runs, own_clips=True)
    for other in (make_row("other", *runs), make_row("other", runs[0]), make_row("other", *runs[:1], own_clips=True)):
        with pytest.raises(UserError, match="other: was evaluated on other clips than own"):
            compare([own, other])
    compare([own, make_row("other", *runs, own_clips=True)])


def test_rows_are_named_after_their_runs() -> None:
    groups = [["ppo/a"], ["ppo/seed-11", "ppo/seed-12"], ["ppo/1-long", "ppo/2-long"], ["ppo/a", "ppo/b", "ppo/c"]]
    assert name_rows(groups) == ["ppo/a", "ppo/seed-* x 2", "ppo/*-long x 2", "ppo/a and 2 more"]
    assert name_rows([["ppo/s-1", "ppo/s-2"], ["ppo/s-3", "ppo/s-4"]]) == ["ppo/s-1 and 1 more", "ppo/s-3 and 1 more"]


def many_rows(number: int, runs: int = 1) -> Comparison:
    names = [f"reward/some-long-name-{place:02}" for place in range(number)]
    rows = [make_row(name, *draw(0.5 + 0.02 * place, runs, 40, seed=place)) for place, name in enumerate(names)]
    return compare(rows, samples=200)


CHANCE = dict.fromkeys(METRIC_NAMES, 0.3)


@pytest.mark.parametrize(("rows", "runs"), [(1, 1), (3, 1), (3, 4), (6, 1), (12, 1), (12, 3)])
def test_tables_of_few_and_many_rows_fit_a_terminal_and_show_every_difference(rows: int, runs: int) -> None:
    comparison = many_rows(rows, runs)
    printed = f"{format_table(comparison, CHANCE)}\n{format_differences(comparison)}"
    assert max(map(len, printed.splitlines())) <= 120
    assert len(printed.splitlines()) < 70
    for row, estimates in zip(comparison.rows, comparison.estimates, strict=True):
        (line,) = [line for line in printed.splitlines() if re.match(rf"{row.name} +\d", line)]
        assert f"{estimates['ndcg@1'].mean:.3f}" in line
    for contrast in comparison.contrasts:
        assert f"{contrast.difference.mean:.3f}" in printed


def test_a_name_longer_than_a_line_leaves_room_for_the_figures() -> None:
    row = make_row("ppo/" + "x" * 110, draw(0.7, 20))
    lines = format_table(compare([row]), CHANCE).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[lines.index(row.name) + 1].split()[0] == f"{row.run_means('ndcg')[0]:.3f}"


def read_csv(rows: Sequence[Row], path: Path) -> list[dict[str, str]]:
    write_csv(compare(rows, samples=200), path)
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["=1+1/a", "@SUM(1)/a", "-1/a", "+1/a"])
def test_a_name_in_a_csv_file_is_no_formula_of_a_spreadsheet(name: str, tmp_path: Path) -> None:
    found = read_csv([make_row(name, draw(0.8, 20)), make_row("ppo/b", draw(0.6, 20))], tmp_path / "table.csv")
    assert {line["row"] for line in found} | {line["minus"] for line in found} == {f"'{name}", "ppo/b", ""}


def test_a_csv_file_has_the_values_of_every_row_every_run_and_every_difference(tmp_path: Path) -> None:
    rows = [make_row("a", *draw(0.8, 3, 20)), make_row("b", *draw(0.6, 3, 20, seed=1)), make_row("c", draw(0.5, 20))]
    found = read_csv(rows, tmp_path / "table.csv")
    comparison = compare(rows, samples=200)
    assert len(found) == (3 + 3) * len(METRIC_NAMES)
    (first,) = [line for line in found if (line["row"], line["minus"], line["metric"]) == ("a", "", "ndcg")]
    assert (first["runs"], first["clips"]) == ("3", "20")
    assert [float(first[f"run_{number}"]) for number in (1, 2, 3)] == pytest.approx(rows[0].run_means("ndcg"), abs=1e-6)
    assert float(first["low"]) == pytest.approx(comparison.estimates[0]["ndcg"].low, abs=1e-6)
    (paired,) = [line for line in found if (line["row"], line["minus"], line["metric"]) == ("a", "b", "ndcg")]
    assert float(paired["run_2"]) == pytest.approx(
        rows[0].run_means("ndcg")[1] - rows[1].run_means("ndcg")[1], abs=1e-5
    )
    assert float(paired["adjusted_p"]) == pytest.approx(comparison.contrasts[0].adjusted_p, rel=1e-4)
    (unpaired,) = [line for line in found if (line["row"], line["minus"], line["metric"]) == ("a", "c", "ndcg@1")]
    assert (unpaired["runs"], unpaired["run_1"], unpaired["adjusted_p"]) == ("3 and 1", "", "")
    assert float(unpaired["p_above_0"]) > 0.9
