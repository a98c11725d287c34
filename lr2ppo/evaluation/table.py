"""A comparison as text for a terminal, and as a CSV file."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

from lr2ppo.evaluation.comparison import (
    METRIC_NAMES,
    METRIC_TITLES,
    Comparison,
    Contrast,
    Row,
    estimate_difference,
    shown_metrics,
)
from lr2ppo.evaluation.metrics import Estimate
from lr2ppo.files import write_text

CELL = 14
# Spreadsheets take a text that starts with one of these, full width or not, for a formula.
FORMULA_STARTS = tuple("=+-@\uff1d\uff0b\uff0d\uff20")
WIDTH = 120
# With more rows than this, a list of every pair is too long to read.
MOST_LISTED_ROWS = 6
COLUMNS = ("row", "minus", "metric", "runs", "clips", "mean", "low", "high", "p_above_0", "adjusted_p")


def format_table(comparison: Comparison, chance: Mapping[str, float]) -> str:
    """Format each row's means and 95 % intervals, between the means of chance and those of the perfect order."""
    shown = shown_metrics(comparison.rows)
    longest = max(len(row.name) for row in comparison.rows) + 4
    width = max(17, min(longest, WIDTH - CELL * len(shown)))
    lines = [" " * width + _cells([METRIC_TITLES[name] for name in shown])]
    lines += _line("chance", [f"{chance[name]:.3f}" for name in shown], width)
    for row, estimates in zip(comparison.rows, comparison.estimates, strict=True):
        lines += _line(row.name, [f"{estimates[name].mean:.3f}" for name in shown], width)
        lines.append(" " * width + _cells([show_interval(estimates[name]) for name in shown]))
    lines += _line("perfect order", ["1.000"] * len(shown), width)
    return "\n".join(lines)


def format_differences(comparison: Comparison) -> str:
    """Format the difference in NDCG(all) of every pair of rows, from the best row on.

    Many rows: a list of the best row's differences, and a triangle of all.
    """
    if len(comparison.rows) <= MOST_LISTED_ROWS:
        return "\n".join(_list_contrasts(comparison.contrasts))
    return "\n".join([*_list_contrasts(comparison.of_best()), "", *_triangle(comparison)])


def write_csv(comparison: Comparison, path: Path) -> None:
    """Write the mean of every row and metric, then the difference of every pair, with each run's own value.

    A difference has a value per run where the runs of both rows are paired. `p_above_0` is the probability that a
    difference is above 0; `adjusted_p` is given for NDCG over whole lists, the metric that rows are compared in.
    """
    most = max(len(row.runs) for row in comparison.rows)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*COLUMNS, *(f"run_{number + 1}" for number in range(most))])
    for row, estimates in zip(comparison.rows, comparison.estimates, strict=True):
        for metric in METRIC_NAMES:
            facts = [_cell(row.name), "", metric, *_sizes(row), *_numbers(estimates[metric]), "", ""]
            writer.writerow(_padded(facts, row.run_means(metric), most))
    for contrast in comparison.contrasts:
        for metric in METRIC_NAMES:
            writer.writerow(_padded(*_describe_difference(comparison, contrast, metric), most))
    write_text(path, stream.getvalue())


def _cell(name: str) -> str:
    """Write a row's name so that a spreadsheet does not take it for a formula."""
    return f"'{name}" if name.lstrip().startswith(FORMULA_STARTS) else name


def wrap(text: str) -> str:
    """Break a text into lines as long as a table's, only between words."""
    return fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def show_probability(probability: float) -> str:
    """Show a probability, without claiming that it is 0 or 1."""
    return "> 0.999" if probability > 0.999 else show_p(probability)


def show_p(p: float) -> str:
    """Show a p-value, without claiming that it is 0."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _list_contrasts(contrasts: Sequence[Contrast]) -> list[str]:
    names = [f"{contrast.first.name} - {contrast.second.name}" for contrast in contrasts]
    width = min(max(map(len, ["differences in NDCG(all)", *names])) + 2, WIDTH - 4 * CELL)
    lines = [f"{'differences in NDCG(all)':<{width}}" + _cells(["mean", "interval", "P(above 0)", "adjusted p"])]
    for name, contrast in zip(names, contrasts, strict=True):
        probabilities = [show_probability(contrast.finding.above_zero), show_p(contrast.adjusted_p)]
        lines += _line(
            name, [f"{contrast.difference.mean:+.3f}", show_interval(contrast.difference, "+"), *probabilities], width
        )
    return lines


def _triangle(comparison: Comparison) -> list[str]:
    """The differences of every pair: the row of a column minus that of a line."""
    places = {row: place for place, row in enumerate(comparison.ordered)}
    found = {(places[each.first], places[each.second]): each for each in comparison.contrasts}
    numbered = [f"{number + 1:>2} {row.name}" for number, row in enumerate(comparison.ordered)]
    cell = 7
    width = min(max(map(len, numbered)) + 1, WIDTH - cell * (len(numbered) - 1))
    lines = ["all differences, columns minus lines; * where one can be seen (adjusted p < 0.05)"]
    lines += _line("", [f"{number + 1} " for number in range(len(numbered) - 1)], width, cell)
    for line, name in enumerate(numbered):
        cells = [found[column, line] for column in range(line)]
        shown = [f"{each.difference.mean:.3f}{'*' if each.is_seen else ' '}" for each in cells]
        lines += _line(name, shown, width, cell)
    return lines


def _line(name: str, cells: Sequence[str], width: int, cell: int = CELL) -> list[str]:
    """A line of cells after a name, or below it if the name is longer than `width`."""
    text = _cells(cells, cell)
    return [(f"{name:<{width}}{text}").rstrip()] if len(name) < width else [name, " " * width + text]


def _cells(cells: Sequence[str], cell: int = CELL) -> str:
    return "".join(f"{text:>{cell}}" for text in cells)


def show_interval(estimate: Estimate, sign: str = "") -> str:
    """Show an interval in brackets, without the zeros before the points; `sign` is + for a difference."""
    low, high = (f"{bound:{sign}.3f}".replace("0.", ".") for bound in (estimate.low, estimate.high))
    return f"[{low} {high}]"


def _describe_difference(comparison: Comparison, contrast: Contrast, metric: str) -> tuple[list[object], list[float]]:
    first, second = contrast.first, contrast.second
    finding = estimate_difference(first, second, metric, comparison.samples, comparison.seed)
    runs, other_runs = len(first.runs), len(second.runs)
    facts = [
        *(_cell(first.name), _cell(second.name), metric, runs if runs == other_runs else f"{runs} and {other_runs}"),
        *(_sizes(first)[1], *_numbers(finding.estimate), f"{finding.above_zero:.6g}"),
        f"{contrast.adjusted_p:.6g}" if metric == "ndcg" else "",
    ]
    own = zip(first.run_means(metric), second.run_means(metric), strict=False)
    return facts, [above - below for above, below in own] if runs == other_runs else []


def _sizes(row: Row) -> tuple[int, int]:
    """How many runs and clips a row rests on."""
    clips = [len(run.clips) for run in row.runs]
    return len(clips), clips[0] if row.shares_clips else sum(clips)


def _numbers(estimate: Estimate) -> list[str]:
    return [f"{number:.6f}" for number in (estimate.mean, estimate.low, estimate.high)]


def _padded(facts: Sequence[object], own: Sequence[float], most: int) -> list[object]:
    return [*facts, *(f"{value:.6f}" for value in own), *[""] * (most - len(own))]
