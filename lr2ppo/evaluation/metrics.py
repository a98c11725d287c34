"""Ranking metrics: NDCG, pair accuracy and their confidence intervals."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lr2ppo.ops.dcg import all_discounts, dcg, gains, ideal_dcg, order

CUTOFFS: dict[str, int | None] = {
    "ndcg@1": 1,
    "ndcg@3": 3,
    "ndcg@5": 5,
    "ndcg@10": 10,
    "ndcg@20": 20,
    "ndcg": None,
}
# Candidate temperatures, from certain of every pair to certain of none.
TEMPERATURES = torch.logspace(-2, 2, 401, dtype=torch.float64)


def ndcg(scores: Tensor, grades: Tensor, mask: Tensor | None = None, k: int | None = None) -> Tensor:
    """Normalised discounted cumulative gain of each list, cut after `k` ranks (None: whole lists).

    Shapes: scores, grades, mask: [batch, labels]; mask is False on padding. Returns [batch] float64.
    Gain 2^grade - 1, discount 1 / log2(rank + 1); 1 if no label has a gain; ties keep the given order.
    """
    mask = _whole(grades) if mask is None else mask
    gain = gains(grades.double(), mask)
    return _normalise(dcg(gain.gather(-1, order(scores, mask)), k), ideal_dcg(gain, k))


def chance_ndcg(grades: Tensor, mask: Tensor | None = None, k: int | None = None) -> Tensor:
    """The exact expectation of `ndcg` under a uniformly random order; same shapes."""
    mask = _whole(grades) if mask is None else mask
    gain = gains(grades.double(), mask)
    labels = mask.sum(-1)
    mean_gain = gain.sum(-1) / labels.clamp(min=1)
    ranks = torch.arange(gain.shape[-1], device=gain.device)
    reached = ranks < (labels if k is None else labels.clamp(max=k)).unsqueeze(-1)
    expected = mean_gain * (all_discounts(gain) * reached).sum(-1)
    return _normalise(expected, ideal_dcg(gain, k))


def pair_accuracy(scores: Tensor, grades: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of a list's label pairs of different grades that the scores order correctly; a tie counts half.

    Shapes: scores, grades, mask: [batch, labels]. Returns [batch] float64, NaN for a list without such a pair.
    """
    mask = _whole(grades) if mask is None else mask
    better = (grades.unsqueeze(-1) > grades.unsqueeze(-2)) & mask.unsqueeze(-1) & mask.unsqueeze(-2)
    difference = scores.double().unsqueeze(-1) - scores.double().unsqueeze(-2)
    right = (difference > 0).double() + 0.5 * (difference == 0).double()
    return (right * better).sum((-1, -2)) / better.sum((-1, -2))


def fit_temperature(margins: Tensor) -> float:
    """Fit the temperature for which `sigmoid(margin / temperature)` best predicts preferences.

    Shapes: margins: [pairs], the reward of the better order minus that of the worse one. Minimizes the negative
    log-likelihood, as in Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2.
    """
    losses = F.softplus(-margins.double().unsqueeze(-1) / TEMPERATURES).mean(0)
    return float(TEMPERATURES[losses.argmin()])


@dataclass(frozen=True)
class Estimate:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float


def bootstrap_mean(values: NDArray[np.float64], samples: int = 2000, seed: int = 0, level: float = 0.95) -> Estimate:
    """Mean over clips with a percentile bootstrap interval; NaN values are ignored.

    Shapes: values: [clips]. For a paired comparison, pass the clips' differences.
    """
    return percentile_interval(values, resampled_means(values, samples, seed), level)


def resampled_means(values: NDArray[np.float64], samples: int, seed: int) -> NDArray[np.float64]:
    """The mean of each bootstrap sample of the clips: [clips] -> [samples]; NaN values are ignored."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return np.full(samples, np.nan)
    drawn = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
    means: NDArray[np.float64] = values[drawn].mean(1)
    return means


def percentile_interval(values: NDArray[np.float64], means: NDArray[np.float64], level: float) -> Estimate:
    """The mean of the values, and the interval that holds the share `level` of their `resampled_means`."""
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Estimate(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(values.mean()), float(low), float(high))


def _whole(grades: Tensor) -> Tensor:
    """The mask of lists without padding."""
    return torch.ones_like(grades, dtype=torch.bool)


def _normalise(dcg: Tensor, ideal_dcg: Tensor) -> Tensor:
    return torch.where(ideal_dcg > 0, dcg / ideal_dcg.clamp(min=1e-12), torch.ones_like(ideal_dcg))
