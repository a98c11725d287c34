"""The table of a comparison of methods: every method's metrics, its difference to a chosen one, and what it takes."""

import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lr2ppo.evaluation.comparison import (
    METRIC_TITLES,
    Comparison,
    Contrast,
    Row,
    compare,
    describe_size,
    estimate_difference,
    shown_metrics,
)
from lr2ppo.evaluation.intervals import Finding, adjust_p, mean_over_runs
from lr2ppo.evaluation.metrics import Estimate
from lr2ppo.evaluation.results import chance_means
from lr2ppo.evaluation.table import show_interval, show_p
from lr2ppo.terminal import one_line

LATEX_MARKS = {mark: f"\\{mark}" for mark in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True, eq=False)
class Method:
    """A row with what it takes: the mean over seeds of all its training time, and the weights that order a clip.

    `chosen` are the settings that were best on the validation split, of `tried` combinations; `last` is the
    mean NDCG by the weights of the runs' last steps; `commits` are the states of the program that trained it.
    """

    row: Row
    stage: str
    seconds: float
    weights: int
    tried: int
    chosen: Sequence[str]
    last: float | None
    commits: AbstractSet[str]
    notes: Sequence[str]


@dataclass(frozen=True, eq=False)
class MethodTable:
    """Methods on a data set, compared with one of them."""

    data: str
    methods: Sequence[Method]
    against: Method
    split: str
    comparison: Comparison

    @classmethod
    def make(cls, data: str, methods: Sequence[Method], against: str, split: str) -> "MethodTable":
        """Compare methods on a split; raises `UserError` if they cannot be compared."""
        chosen = next(method for method in methods if method.row.name == against)
        return cls(data, methods, chosen, split, compare([method.row for method in methods]))

    @cached_property
    def notes(self) -> list[str]:
        """What the table should not be read without."""
        notes = [note for method in self.methods for note in method.notes]
        if self.split == "val":
            notes.append("note: on these clips the best step of each run and the tuned values were chosen")
        commits = sorted(set[str]().union(*(method.commits for method in self.methods)))
        if len(commits) > 1:
            notes.append(f"note: the runs are of {len(commits)} states of the program: {', '.join(commits)}")
        # A run's folder may come from someone else: a line's end would start something else in LaTeX.
        return list(map(one_line, notes))

    @cached_property
    def contrasts(self) -> list[Contrast | None]:
        """The difference of every method and the chosen one, None for itself; p-values adjusted for these (Holm)."""
        settings = self.comparison.samples, self.comparison.seed

        def difference(place: int) -> Finding:
            return estimate_difference(self.methods[place].row, self.against.row, "ndcg", *settings)

        return _contrasts(self.methods, self.against, difference)

    @cached_property
    def metrics(self) -> list[str]:
        return shown_metrics(self.comparison.rows)


def describe_methods(table: MethodTable) -> str:
    """Say which methods are above and below the chosen one, and of which no difference to it can be seen."""
    contrasts = [contrast for contrast in table.contrasts if contrast is not None]
    chosen, size = table.against.row.name, describe_size(table.comparison.rows)
    sentences = []
    for what, sign in (("Above", 1), ("Below", -1)):
        seen = [each for each in contrasts if each.is_seen and each.difference.mean * sign > 0]
        names = [f"{each.first.name} ({each.difference.mean:+.3f})" for each in seen]
        if names:
            sentences.append(f"{what} {chosen}: {', '.join(names)}.")
    unseen = [each.first.name for each in contrasts if not each.is_seen]
    if unseen:
        sentences.append(f"No difference to {chosen} can be seen with {size}: {', '.join(unseen)}.")
    return " ".join(sentences)


def format_text(table: MethodTable) -> str:
    """Format each method's difference to the chosen one and what it takes, for a terminal."""
    name = f"NDCG(all) minus {table.against.row.name}"
    width = max(len(name), *(len(method.row.name) for method in table.methods)) + 2
    heads = f"{'mean':>8}{'interval':>16}{'adjusted p':>12}{'last step':>11}{'time':>9}{'weights':>10}"
    lines = [f"{name:<{width}}{heads}  chosen"]
    for method, contrast in zip(table.methods, table.contrasts, strict=True):
        cells = _contrast_cells(contrast)
        lines.append(
            f"{method.row.name:<{width}}{cells[0]:>8}{cells[1]:>16}{cells[2]:>12}{show_last(method):>11}"
            f"{show_time(method.seconds):>9}"
            f"{show_count(method.weights):>10}  {show_chosen(method)}".rstrip()
        )
    return "\n".join(lines)


def format_markdown(table: MethodTable) -> str:
    """Format all as one Markdown table."""
    return _as_markdown(_all_cells(table, in_markdown), table.notes)


def format_latex(table: MethodTable) -> str:
    """Format all as one LaTeX tabular, for the package booktabs."""
    return _as_latex(_all_cells(table, in_latex), table.notes)


def contrasts_over_data(tables: Sequence[MethodTable]) -> list[Contrast | None]:
    """The difference of every method and the chosen one, as the mean over data sets; None for itself, or of one seed.

    A seed's difference is one value, the mean of those on all its data sets, which may share its clips and encoders.
    Intervals are t intervals over seeds; p-values are adjusted for these differences (Holm).
    """
    methods, chosen = tables[0].methods, tables[0].methods.index(tables[0].against)
    # [data sets, methods, seeds]
    means = np.array([[method.row.run_means("ndcg") for method in table.methods] for table in tables])
    if means.shape[-1] < 2:
        return [None] * len(methods)
    differences = (means - means[:, [chosen]]).mean(0)
    return _contrasts(methods, methods[chosen], lambda place: mean_over_runs(differences[place]))


def _contrasts(
    methods: Sequence[Method], against: Method, difference: Callable[[int], Finding]
) -> list[Contrast | None]:
    """The contrast of every method, by its place, and the chosen one, None for itself; p-values adjusted (Holm)."""
    findings = [None if method is against else difference(place) for place, method in enumerate(methods)]
    adjusted = iter(adjust_p([finding.p for finding in findings if finding is not None]))
    return [
        None if finding is None else Contrast(method.row, against.row, finding, next(adjusted))
        for method, finding in zip(methods, findings, strict=True)
    ]


def format_summary_text(tables: Sequence[MethodTable]) -> str:
    """Format each method's mean over data sets, and its difference to the chosen one, for a terminal."""
    name = f"NDCG(all), mean of {len(tables)} data sets"
    width = max(len(name), *(len(method.row.name) for method in tables[0].methods)) + 2
    lines = [f"{name:<{width}}{'mean':>8}{'difference':>12}{'interval':>16}{'adjusted p':>12}"]
    for own, means, (difference, interval, p) in _summary_rows(tables):
        mean = _number(float(np.mean(means)))
        lines.append(f"{own:<{width}}{mean:>8}{difference:>12}{interval:>16}{p:>12}".rstrip())
    return "\n".join(lines)


def format_summary_markdown(tables: Sequence[MethodTable]) -> str:
    """Format each method's NDCG over whole lists on every data set as one Markdown table."""
    return _as_markdown(_summary_cells(tables, in_markdown), _all_notes(tables))


def format_summary_latex(tables: Sequence[MethodTable]) -> str:
    """Format each method's NDCG over whole lists on every data set as one LaTeX tabular, for the package booktabs."""
    return _as_latex(_summary_cells(tables, in_latex), _all_notes(tables))


def _all_notes(tables: Sequence[MethodTable]) -> list[str]:
    """The notes of several tables, each once."""
    return list(dict.fromkeys(note for table in tables for note in table.notes))


def _as_markdown(cells: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    ruler = ["---", *("---:" for _ in cells[0][1:])]
    rows = [f"| {' | '.join(row)} |" for row in (cells[0], ruler, *cells[1:])]
    return "\n".join([*rows, *(f"\n{in_markdown(note)}" for note in notes), ""])


def _as_latex(cells: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    lines = [" & ".join(row) + r" \\" for row in cells]
    columns = "l" + "r" * (len(cells[0]) - 1)
    head = [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    return "\n".join([*head, *lines[1:], r"\bottomrule", r"\end{tabular}", *(f"% {note}" for note in notes), ""])


def in_latex(text: str) -> str:
    """Write a text without letting its marks become LaTeX."""
    return "".join(LATEX_MARKS.get(mark, mark) for mark in text)


def in_markdown(text: str) -> str:
    """Write a text with names of a run on one line, without letting them become Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", " ".join(text.split()))


def _all_cells(table: MethodTable, escape: Callable[[str], str]) -> list[list[str]]:
    """The cells of a table in one: its heading, chance, every method, and the perfect order; names are escaped."""
    chance = chance_means(table.against.row)
    head = [
        "",
        *(METRIC_TITLES[name] for name in table.metrics),
        f"minus {escape(table.against.row.name)}",
        "adjusted p",
    ]
    rows = [[*head, "last step", "time", "weights"]]
    rows.append(["chance", *(_number(chance[name]) for name in table.metrics), "", "", "", "", ""])
    for method, contrast, estimates in zip(table.methods, table.contrasts, table.comparison.estimates, strict=True):
        own = [_with_interval(estimates[name]) if name == "ndcg" else _number(estimates[name].mean)
               for name in table.metrics]  # fmt: skip
        difference, interval, p = _contrast_cells(contrast)
        takes = [show_last(method), show_time(method.seconds), show_count(method.weights)]
        rows.append([escape(method.row.name), *own, f"{difference} {interval}".strip(), p, *takes])
    rows.append(["perfect order", *("1.000" for _ in table.metrics), "", "", "", "", ""])
    return rows


def _summary_cells(tables: Sequence[MethodTable], escape: Callable[[str], str]) -> list[list[str]]:
    """The cells of a table of data sets: its heading, chance and every method; names are escaped."""
    against = escape(tables[0].against.row.name)
    rows = [["", *(escape(table.data) for table in tables), "mean", f"mean minus {against}", "adjusted p"]]
    for name, means, (difference, interval, p) in _summary_rows(tables):
        own = map(_number, (*means, float(np.mean(means))))
        rows.append([escape(name), *own, f"{difference} {interval}".strip(), p])
    return rows


def _summary_rows(tables: Sequence[MethodTable]) -> list[tuple[str, list[float], tuple[str, str, str]]]:
    """Chance and every method: its name, its NDCG on each data set, and the cells of its difference over all."""
    rows = [("chance", [chance_means(table.against.row)["ndcg"] for table in tables], ("", "", ""))]
    for place, contrast in enumerate(contrasts_over_data(tables)):
        means = [table.comparison.estimates[place]["ndcg"].mean for table in tables]
        rows.append((tables[0].methods[place].row.name, means, _contrast_cells(contrast)))
    return rows


def _contrast_cells(contrast: Contrast | None) -> tuple[str, str, str]:
    """A difference, its interval and its p-value; empty for the chosen row itself."""
    if contrast is None:
        return "", "", ""
    found = contrast.difference
    return f"{found.mean:+.3f}", show_interval(found, "+"), show_p(contrast.adjusted_p)


def _with_interval(estimate: Estimate) -> str:
    return f"{_number(estimate.mean)} {show_interval(estimate)}"


def _number(value: float) -> str:
    return f"{value:.3f}"


def show_chosen(method: Method) -> str:
    """The settings that a method chose on validation, without the stages and sections of their keys."""
    values = [f"{setting.partition('=')[0].split('.')[-1]}={setting.partition('=')[2]}" for setting in method.chosen]
    return f"{', '.join(values)} (of {method.tried})" if method.tried > 1 else ""


def show_last(method: Method) -> str:
    """The mean NDCG by the weights of the last step."""
    return "" if method.last is None else _number(method.last)


def show_time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def show_count(count: int) -> str:
    """A count of weights, such as 310k."""
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k"
