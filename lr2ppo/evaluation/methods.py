"""The table of a comparison of methods: every method's metrics, its difference to a chosen one, and what it takes."""

import re
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cached_property

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
from lr2ppo.evaluation.intervals import adjust_p
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
        others = [method for method in self.methods if method is not self.against]
        settings = self.comparison.samples, self.comparison.seed
        findings = [estimate_difference(other.row, self.against.row, "ndcg", *settings) for other in others]
        adjusted = adjust_p([finding.p for finding in findings])
        found = {
            id(other): Contrast(other.row, self.against.row, finding, p)
            for other, finding, p in zip(others, findings, adjusted, strict=True)
        }
        return [found.get(id(method)) for method in self.methods]

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
    cells = _all_cells(table, in_markdown)
    ruler = ["---", *("---:" for _ in cells[0][1:])]
    notes = [f"\n{in_markdown(note)}" for note in table.notes]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in (cells[0], ruler, *cells[1:])), *notes, ""])


def format_latex(table: MethodTable) -> str:
    """Format all as one LaTeX tabular, for the package booktabs."""
    cells = _all_cells(table, lambda text: "".join(LATEX_MARKS.get(mark, mark) for mark in text))
    lines = [" & ".join(row) + r" \\" for row in cells]
    columns = "l" + "r" * (len(cells[0]) - 1)
    head = [f"\\begin{{tabular}}{{{columns}}}", r"\toprule", lines[0], r"\midrule"]
    notes = [f"% {note}" for note in table.notes]
    return "\n".join([*head, *lines[1:], r"\bottomrule", r"\end{tabular}", *notes, ""])


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
