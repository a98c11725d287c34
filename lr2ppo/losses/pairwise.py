"""Losses of stage 1 over the pairs of a list's labels of different grades."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lr2ppo.losses.lists import differences, has_order, is_better, or_one, prepare_lists
from lr2ppo.losses.reduction import Total, masked_mean, this_process
from lr2ppo.ops.dcg import discounts, gains, ideal_dcg, ranks


def ranknet_loss(scores: Tensor, grades: Tensor, mask: Tensor | None = None, total: Total = this_process) -> Tensor:
    """Mean logistic loss of the score differences of all label pairs of different grades (Burges et al. 2005).

    Shapes: scores, grades: [batch, labels] float; mask: [batch, labels] bool, False on padding. `total` sums a
    tensor over the processes that share a batch; the mean is over all their pairs, 0 without any.
    """
    scores, grades, mask = prepare_lists(scores, grades, mask)
    return masked_mean(F.softplus(-differences(scores)), is_better(grades, mask), total)


def lambdarank_loss(
    scores: Tensor,
    grades: Tensor,
    mask: Tensor | None = None,
    sigma: float = 1.0,
    k: int | None = None,
    total: Total = this_process,
) -> Tensor:
    """LambdaRank (Burges et al. 2006): a pair's logistic loss times the NDCG@k that swapping its labels would change.

    As a loss (Wang et al. 2018): the sum of |dNDCG| log2(1 + e^(-sigma difference)) over a list's pairs. Shapes as in
    `ranknet_loss`; the mean is over the lists with labels of different grades. A cutoff of None is the whole list.
    """
    scores, grades, mask = prepare_lists(scores, grades, mask)
    rank = ranks(scores.detach(), mask).to(scores.dtype)
    return _lambda_loss(scores, grades, mask, differences(discounts(rank, k)).abs(), sigma, k, total)


def ndcg_loss2pp_loss(
    scores: Tensor,
    grades: Tensor,
    mask: Tensor | None = None,
    sigma: float = 1.0,
    mu: float = 10.0,
    k: int | None = None,
    total: Total = this_process,
) -> Tensor:
    """NDCG-Loss2++ (Wang et al. 2018, "The LambdaLoss Framework for Ranking Metric Optimization").

    A pair's weight is LambdaRank's plus `mu` times the discount that one more step takes at the distance of its ranks.
    With a cutoff, only pairs with a label among the first `k` ranks count. Shapes and mean as in `lambdarank_loss`.
    """
    scores, grades, mask = prepare_lists(scores, grades, mask)
    rank = ranks(scores.detach(), mask).to(scores.dtype)
    # At distance 0 is only a label and itself, no pair.
    distance = differences(rank).abs().clamp(min=1)
    step = discounts(distance) - discounts(distance + 1)
    if k is not None:
        step = step * (torch.minimum(rank.unsqueeze(-1), rank.unsqueeze(-2)) <= k)
    weight = differences(discounts(rank, k)).abs() + mu * step
    return _lambda_loss(scores, grades, mask, weight, sigma, k, total)


def _lambda_loss(
    scores: Tensor, grades: Tensor, mask: Tensor, weight: Tensor, sigma: float, k: int | None, total: Total
) -> Tensor:
    """The pairs' logistic losses, in bits, weighted by gain difference over ideal DCG and `weight` [batch, i, j]."""
    gain = gains(grades, mask)
    better = is_better(grades, mask)
    gap = differences(gain) / or_one(ideal_dcg(gain, k))[:, None, None]
    loss = F.softplus(-sigma * differences(scores)) / math.log(2)
    return masked_mean((loss * gap * weight).where(better, 0.0).sum((-1, -2)), has_order(grades, mask), total)
