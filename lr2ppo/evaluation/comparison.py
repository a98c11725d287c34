"""Compare rows of evaluated runs: their means, the difference of every pair of rows, the best row, and this in words.

The terminal's table, the report and the model card all show this comparison.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, takewhile
from string import digits
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lr2ppo.errors import UserError
from lr2ppo.evaluation.intervals import (
    Finding,
    adjust_p,
    difference_of_rows,
    mean_of_one_run,
    mean_over_runs,
    mean_over_runs_and_clips,
)
from lr2ppo.evaluation.metrics import CUTOFFS, Estimate

METRIC_NAMES = (*CUTOFFS, "pair_accuracy")
METRIC_TITLES = {"ndcg": "NDCG(all)", "pair_accuracy": "pair acc."} | {
    f"ndcg@{k}": f"NDCG@{k}" for k in (1, 3, 5, 10, 20)
}
# A difference with a smaller adjusted p-value counts as seen.
LARGEST_P = 0.05
# Of the bootstrap, where no config sets them.
SAMPLES, SEED = 2000, 7
NAN = float("nan")
NOTHING = Finding(Estimate(NAN, NAN, NAN), NAN)

ClipMetrics = dict[str, NDArray[np.float64]]


class ClipKey(NamedTuple):
    """What makes clips the same: the id, the labels and their grades."""

    id: str
    labels: tuple[str, ...]
    grades: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Run:
    """An evaluated run: its clips, and each metric's value for every clip in the same order."""

    name: str
    clips: tuple[ClipKey, ...]
    metrics: ClipMetrics


@dataclass(frozen=True, eq=False)
class Row:
    """One or more runs that are shown as one, such as a run per seed: all on the same clips, or each on its own."""

    name: str
    runs: Sequence[Run]

    @property
    def shares_clips(self) -> bool:
        return all(run.clips == self.runs[0].clips for run in self.runs)

    def values(self, metric: str) -> list[NDArray[np.float64]]:
        """Each run's values of a metric, one per clip."""
        return [run.metrics[metric] for run in self.runs]

    def run_means(self, metric: str) -> list[float]:
        """Each run's mean of a metric; NaN values are left out."""
        return [mean_without_nan(values) for values in self.values(metric)]


@dataclass(frozen=True)
class Contrast:
    """The difference in NDCG over whole lists of a row and one that is not above it: `first` minus `second`.

    `adjusted_p` is the two-sided p-value after adjustment for the number of contrasts of the comparison.
    """

    first: Row
    second: Row
    finding: Finding
    adjusted_p: float

    @property
    def difference(self) -> Estimate:
        return self.finding.estimate

    @property
    def holds_zero(self) -> bool:
        """Whether the 95 % interval of the difference holds 0."""
        return self.difference.low <= 0 <= self.difference.high

    @property
    def is_seen(self) -> bool:
        return self.adjusted_p < LARGEST_P and not self.holds_zero


@dataclass(frozen=True)
class Comparison:
    """Rows in the given order with each metric's estimate, the same rows from the best on, and a contrast per pair.

    Rows are ordered by their NDCG over whole lists; contrasts start with those of the best row.
    """

    rows: Sequence[Row]
    estimates: Sequence[dict[str, Estimate]]
    ordered: Sequence[Row]
    contrasts: Sequence[Contrast]
    samples: int
    seed: int

    @property
    def best(self) -> Row:
        return self.ordered[0]

    def of_best(self) -> list[Contrast]:
        """The contrasts of the best row, with the next best first."""
        return [contrast for contrast in self.contrasts if contrast.first is self.best]


def compare(rows: Sequence[Row], samples: int = SAMPLES, seed: int = SEED) -> Comparison:
    """Compare rows; raises `UserError` if the runs of a row, or two rows, cannot be compared.

    Intervals of one run are bootstraps over clips with `samples` samples, drawn from `seed`.
    """
    check_rows(rows)
    estimates = [estimate_row(row, samples, seed) for row in rows]
    means = [estimate["ndcg"].mean for estimate in estimates]
    ordered = [rows[place] for place in sorted(range(len(rows)), key=lambda place: -means[place])]
    pairs = list(combinations(ordered, 2))
    findings = [estimate_difference(first, second, "ndcg", samples, seed) for first, second in pairs]
    adjusted = adjust_p([finding.p for finding in findings])
    contrasts = [
        Contrast(first, second, finding, p)
        for (first, second), finding, p in zip(pairs, findings, adjusted, strict=True)
    ]
    return Comparison(rows, estimates, ordered, contrasts, samples, seed)


def check_rows(rows: Sequence[Row]) -> None:
    """Raise `UserError` if the runs of a row, or two rows, cannot be compared."""
    for row in rows:
        clips = [key for run in row.runs for key in run.clips]
        if not row.shares_clips and len(set(clips)) < len(clips):
            raise UserError(
                f"{row.name}: its runs were evaluated on some of the same clips, but not on all; "
                "wanted the same clips for all its runs, or other clips for each"
            )
    for first, second in combinations(rows, 2):
        if not are_comparable(first, second):
            raise UserError(
                f"{second.name}: was evaluated on other clips than {first.name}, or the same with other labels or "
                "grades; evaluate both on the same split of the same data. Runs with their own clips are compared one "
                "by one: both rows need as many, in the same order"
            )


def are_comparable(first: Row, second: Row) -> bool:
    """Whether rows have as many runs, one by one on the same clips, or any number of runs on the same clips."""
    return _are_paired(first, second) or (
        first.shares_clips and second.shares_clips and first.runs[0].clips == second.runs[0].clips
    )


def estimate_row(row: Row, samples: int, seed: int) -> dict[str, Estimate]:
    """Return the mean of every metric with its 95 % interval; no bound leaves 0 to 1, as no metric does."""
    findings = {name: _estimate(row.values(name), row.shares_clips, samples, seed).estimate for name in METRIC_NAMES}
    if len(row.runs) == 1:
        return findings
    return {
        name: Estimate(found.mean, float(np.maximum(found.low, 0)), float(np.minimum(found.high, 1)))
        for name, found in findings.items()
    }


def estimate_difference(first: Row, second: Row, metric: str, samples: int, seed: int) -> Finding:
    """Estimate by how much the mean of a row is above another's, with rows that `are_comparable`.

    Rows of as many runs are paired run by run; for others see `intervals.difference_of_rows`.
    """
    values = first.values(metric), second.values(metric)
    if _are_paired(first, second):
        differences = [above - below for above, below in zip(*values, strict=True)]
        return _estimate(differences, first.shares_clips, samples, seed)
    tables = [np.stack([each[~np.isnan(each)] for each in own]) for own in values]
    return difference_of_rows(*tables) if tables[0].size else NOTHING


def clip_differences(first: Row, second: Row) -> NDArray[np.float64]:
    """Return by how much NDCG over whole lists is above in the first row, for each clip: the mean of its runs."""
    values = first.values("ndcg"), second.values("ndcg")
    if first.shares_clips:
        above, below = (np.mean(own, axis=0) for own in values)
        gains: NDArray[np.float64] = above - below
        return gains
    return np.concatenate([above - below for above, below in zip(*values, strict=True)])


def shown_metrics(rows: Sequence[Row]) -> list[str]:
    """Select the metrics to show: NDCG@20 only if a list has more than 20 labels; else it equals NDCG."""
    runs = [run for row in rows for run in row.runs]
    is_longer = any(not np.array_equal(run.metrics["ndcg@20"], run.metrics["ndcg"]) for run in runs)
    return [name for name in METRIC_NAMES if name != "ndcg@20" or is_longer]


def name_rows(groups: Sequence[Sequence[str]]) -> list[str]:
    """Name rows after their runs: `ppo/seed-* x 3` where the names differ in one place, else `ppo/a and 2 more`."""
    short = [_common_name(names) for names in groups]
    return [
        name if len(names) == 1 or short.count(name) == 1 else f"{names[0]} and {len(names) - 1} more"
        for name, names in zip(short, groups, strict=True)
    ]


def describe_best(comparison: Comparison) -> str:
    """Say in a sentence or two which row is best, or that no difference can be seen between the best rows."""
    best, against = comparison.best, comparison.of_best()
    mean = comparison.estimates[comparison.rows.index(best)]["ndcg"]
    if not against:
        return f"{best.name} orders the labels with an NDCG(all) of {mean.mean:.3f} ({describe_interval(mean)})."
    unseen = [contrast for contrast in against if not contrast.is_seen]
    seen = [contrast for contrast in against if contrast.is_seen]
    if not unseen:
        return f"{best.name} orders best: NDCG(all) {mean.mean:.3f}, {_above(seen[0])}."
    size = describe_size([best, *(contrast.second for contrast in unseen)])
    sentences = [f"No difference between {best.name} and {_others(unseen)} can be seen with {size}: {_unseen(unseen)}."]
    if seen:
        sentences.append(f"{best.name} is {_above(seen[0])}.")
    return " ".join(sentences)


def describe_interval(estimate: Estimate) -> str:
    """Return `95 % interval LOW to HIGH`, with signs if it holds numbers below 0."""
    sign = "+" if estimate.low < 0 else ""
    return f"95 % interval {estimate.low:{sign}.3f} to {estimate.high:{sign}.3f}"


def describe_size(rows: Sequence[Row]) -> str:
    """Say on how many runs and clips rows rest: `30 clips`, `3 runs on 30 clips`, or `90 clips of 3 runs`."""
    clips = len(rows[0].runs[0].clips)
    counts = sorted({len(row.runs) for row in rows})
    if counts == [1]:
        return f"{clips} clips"
    if not rows[0].shares_clips:
        return f"{sum(len(run.clips) for run in rows[0].runs)} clips of {counts[0]} runs"
    runs = " and ".join(map(str, counts)) if len(counts) < 3 else f"{counts[0]} to {counts[-1]}"
    return f"{runs} runs on {clips} clips"


def describe_intervals(rows: Sequence[Row]) -> str:
    """Say how the intervals of rows are made."""
    single = "bootstrap intervals over clips, which say nothing about other seeds"
    several = [row for row in rows if len(row.runs) > 1]
    if not several:
        return f"95 % {single}"
    over = "runs and clips" if several[0].shares_clips else "runs, each with its own clips"
    found = f"95 % t intervals over {over}"
    return found if len(several) == len(rows) else f"{found}; for a row of one run, {single}"


def _are_paired(first: Row, second: Row) -> bool:
    return [run.clips for run in first.runs] == [run.clips for run in second.runs]


def _estimate(values: Sequence[NDArray[np.float64]], shares_clips: bool, samples: int, seed: int) -> Finding:
    """Estimate the mean of runs, given as each run's values [clips], without NaN values."""
    values = [own[~np.isnan(own)] for own in values]
    if not all(map(len, values)):
        return NOTHING
    if len(values) == 1:
        return mean_of_one_run(values[0], samples, seed)
    if shares_clips:
        return mean_over_runs_and_clips(np.stack(values))
    return mean_over_runs(np.array([own.mean() for own in values]))


def mean_without_nan(values: NDArray[np.float64]) -> float:
    """The mean of the values that are not NaN; NaN without any."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else NAN


def _common_name(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    start = _common_start(names).rstrip(digits)
    end = _common_start([name[len(start) :][::-1] for name in names])[::-1].lstrip(digits)
    named_alike = start.rpartition("/")[2] or end
    return f"{start}*{end} x {len(names)}" if named_alike else f"{names[0]} and {len(names) - 1} more"


def _common_start(texts: Sequence[str]) -> str:
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in alike)


def _above(contrast: Contrast) -> str:
    return f"{contrast.difference.mean:.3f} above {contrast.second.name} ({describe_interval(contrast.difference)})"


def _others(contrasts: Sequence[Contrast]) -> str:
    names = [contrast.second.name for contrast in contrasts]
    if len(names) == 1:
        return names[0]
    return f"any of {', '.join(names[:-1])} and {names[-1]}" if len(names) < 4 else f"any of {len(names)} other rows"


def _unseen(contrasts: Sequence[Contrast]) -> str:
    nearest = contrasts[0]
    interval = describe_interval(nearest.difference)
    # The interval is of this contrast alone: it may not hold 0 where the p-value, adjusted for all, is not small.
    adjusted = "" if nearest.holds_zero else f", adjusted p {nearest.adjusted_p:.3f}"
    whose = f"to {nearest.second.name} it is " if len(contrasts) > 1 else ""
    return f"{whose}{nearest.difference.mean:.3f} ({interval}{adjusted})"
