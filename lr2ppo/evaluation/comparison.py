"""Compare runs on the same clips: means, bootstrap intervals and paired differences, as a text table."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lr2ppo.evaluation.metrics import CUTOFFS, Estimate, bootstrap_mean

METRIC_NAMES = (*CUTOFFS, "pair_accuracy")
METRIC_TITLES = {"ndcg": "NDCG(all)", "pair_accuracy": "pair acc."} | {
    f"ndcg@{k}": f"NDCG@{k}" for k in (1, 3, 5, 10, 20)
}
CELL = 14

ClipMetrics = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Row:
    """A run, or a pool of runs: each metric's value for every clip, clips in the same order in all rows."""

    name: str
    metrics: ClipMetrics


def paired_differences(first: ClipMetrics, second: ClipMetrics, samples: int, seed: int) -> dict[str, Estimate]:
    """Return the paired difference second - first of every metric, with its bootstrap interval over clips."""
    return {name: bootstrap_mean(second[name] - first[name], samples, seed) for name in METRIC_NAMES}


def estimate_means(metrics: ClipMetrics, samples: int, seed: int) -> dict[str, Estimate]:
    """Return the mean of every metric, with its bootstrap interval over clips."""
    return {name: bootstrap_mean(metrics[name], samples, seed) for name in METRIC_NAMES}


def format_table(rows: Sequence[Row], samples: int, seed: int, reference: Sequence[Row] = ()) -> str:
    """Format the rows as a text table, then the paired difference of each row to the one before it.

    `reference` is two rows without intervals, shown first and last: chance and perfect order.
    """
    shown = shown_metrics(rows)
    width = max(len(row.name) for row in [*rows, *reference]) + 4
    lines = [" " * width + "".join(f"{METRIC_TITLES[name]:>{CELL}}" for name in shown)]
    for row in reference[:1]:
        lines.append(_means(row, shown, width))
    for row in rows:
        estimates = estimate_means(row.metrics, samples, seed)
        lines.append(f"{row.name:<{width}}" + "".join(f"{estimates[name].mean:>{CELL}.3f}" for name in shown))
        lines.append(" " * width + "".join(f"{_interval(estimates[name], ''):>{CELL}}" for name in shown))
    for row in reference[1:]:
        lines.append(_means(row, shown, width))
    if len(rows) > 1:
        lines += ["", "paired differences"]
    for before, after in pairwise(rows):
        estimates = paired_differences(before.metrics, after.metrics, samples, seed)
        lines.append(f"{after.name:<{width}}" + "".join(f"{estimates[name].mean:>+{CELL}.3f}" for name in shown))
        minus = f" - {before.name}"
        lines.append(f"{minus:<{width}}" + "".join(f"{_interval(estimates[name], '+'):>{CELL}}" for name in shown))
    return "\n".join(lines)


def describe_gain(before: Row, after: Row, samples: int, seed: int) -> str:
    """Describe in one sentence by how much a row's NDCG over whole lists is above another's."""
    gain = paired_differences(before.metrics, after.metrics, samples, seed)["ndcg"]
    return (
        f"{after.name} is {abs(gain.mean):.3f} NDCG(all) {'above' if gain.mean >= 0 else 'below'} {before.name} "
        f"(95 % interval {gain.low:+.3f} to {gain.high:+.3f})."
    )


def _means(row: Row, shown: Sequence[str], width: int) -> str:
    return f"{row.name:<{width}}" + "".join(f"{np.nanmean(row.metrics[name]):>{CELL}.3f}" for name in shown)


def _interval(estimate: Estimate, sign: str) -> str:
    low, high = (f"{bound:{sign}.3f}".replace("0.", ".") for bound in (estimate.low, estimate.high))
    return f"[{low} {high}]"


def shown_metrics(rows: Sequence[Row]) -> list[str]:
    """Select the metrics to show: NDCG@20 only if a list has more than 20 labels; else it equals NDCG."""
    is_longer = any(not np.array_equal(row.metrics["ndcg@20"], row.metrics["ndcg"]) for row in rows)
    return [name for name in METRIC_NAMES if name != "ndcg@20" or is_longer]
