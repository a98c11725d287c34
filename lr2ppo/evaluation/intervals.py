"""95 % intervals of a mean over runs and clips, and of the difference of two such means.

One run says nothing about other seeds: its interval is a bootstrap over clips. Several runs have a t interval, from the
variance between the runs and between the clips: a percentile bootstrap over a few runs is too narrow. How often each
kind of interval holds the true mean: `python -m tests.evaluation.coverage`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from lr2ppo.evaluation.metrics import Estimate, percentile_interval, resampled_means

LEVEL = 0.95

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Finding:
    """A mean with its 95 % interval, and the probability that the true mean is above 0."""

    estimate: Estimate
    above_zero: float

    @property
    def p(self) -> float:
        """The two-sided p-value of a mean of 0."""
        return 2 * min(self.above_zero, 1 - self.above_zero)


class MeanSquares(NamedTuple):
    """The mean squares of values [runs, clips]: between the runs, between the clips, and of the rest."""

    runs: float
    clips: float
    rest: float


def mean_of_one_run(values: Values, samples: int, seed: int) -> Finding:
    """The mean over the clips of one run, by a bootstrap over clips: values [clips].

    The probability is the share of samples above 0, half a sample away from 0 and from 1, which samples cannot show.
    """
    means = resampled_means(values, samples, seed)
    above = np.sum(means > 0) + 0.5 * np.sum(means == 0)
    return Finding(percentile_interval(values, means, LEVEL), float((above + 0.5) / (samples + 1)))


def mean_over_runs_and_clips(values: Values) -> Finding:
    """The mean of runs that share their clips, a sample of both: values [runs, clips], at least 2 runs.

    With MS the mean squares of S runs and C clips, the variance of the mean is (MS_runs + MS_clips - MS_rest) / (S C),
    at least MS_runs / (S C) and MS_clips / (S C). Degrees of freedom: Satterthwaite 1946, at least S - 1.
    """
    runs, clips = values.shape
    squares = mean_squares(values)
    total = squares.runs + squares.clips - squares.rest
    spread = squares.runs**2 / (runs - 1) + (squares.clips**2 + squares.rest**2 / (runs - 1)) / max(clips - 1, 1)
    variance = max(total, squares.runs, squares.clips) / values.size
    return _t_finding(float(values.mean()), variance, _freedom(total, spread, runs - 1))


def mean_over_runs(means: Values) -> Finding:
    """The mean of runs that have their own clips each, by a t interval over their means: [runs], at least 2."""
    return _t_finding(float(means.mean()), float(means.var(ddof=1)) / len(means), len(means) - 1)


def difference_of_rows(first: Values, second: Values) -> Finding:
    """The mean of `first` minus that of `second`, with other numbers of runs on the same clips: [runs, clips] each.

    With a variance between runs and MS as above, the variance of the difference is the sum of
    var(clip means of `first` - clip means of `second`) / C, which holds the clips and what is left of the rest, and of
    (MS_runs - MS_rest) / (S C) of each row of several runs; at least the clips' part, and the runs' without MS_rest.
    The runs of two rows count as independent, and a row of one run as that run only. Degrees of freedom: Satterthwaite,
    at least S - 1 of the smaller row of several runs.
    """
    clips = first.shape[1]
    several = [values for values in (first, second) if len(values) > 1]
    of_clips = _variance(first.mean(0) - second.mean(0)) / clips
    of_runs, total, spread = 0.0, of_clips, of_clips**2 / max(clips - 1, 1)
    for values in several:
        runs, _, rest = (square / values.size for square in mean_squares(values))
        of_runs += runs
        total += runs - rest
        spread += (runs**2 + rest**2 / max(clips - 1, 1)) / (len(values) - 1)
    freedom = _freedom(total, spread, min(len(values) for values in several) - 1)
    return _t_finding(float(first.mean() - second.mean()), max(total, of_clips, of_runs), freedom)


def mean_squares(values: Values) -> MeanSquares:
    """The mean squares of values [runs, clips], at least 2 runs; 0 for what a single clip cannot show."""
    runs, clips = values.shape
    of_runs, of_clips = values.mean(1), values.mean(0)
    rest = values - of_runs[:, None] - of_clips + values.mean()
    return MeanSquares(
        clips * _variance(of_runs),
        runs * _variance(of_clips),
        float((rest**2).sum()) / ((runs - 1) * max(clips - 1, 1)),
    )


def adjust_p(values: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, in the same order, as in Holm 1979."""
    order = np.argsort(values, kind="stable")
    steps = np.asarray(values)[order] * np.arange(len(values), 0, -1)
    adjusted = np.empty(len(values))
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return [float(value) for value in adjusted]


def _variance(values: Values) -> float:
    return float(values.var(ddof=1)) if len(values) > 1 else 0.0


def _freedom(total: float, spread: float, least: int) -> float:
    return max(total**2 / spread, least) if spread > 0 else least


def _t_finding(mean: float, variance: float, freedom: float) -> Finding:
    error = float(np.sqrt(variance))
    reach = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    above = float(stdtr(freedom, mean / error)) if error > 0 else (1 + float(np.sign(mean))) / 2
    return Finding(Estimate(mean, mean - reach, mean + reach), above)
