"""Losses of stage 1 that compare each score with its own grade."""

import math

import torch.nn.functional as F
from torch import Tensor

from lr2ppo.losses.lists import prepare_lists
from lr2ppo.losses.reduction import Total, masked_mean, this_process


def smooth_l1_loss(
    scores: Tensor, grades: Tensor, mask: Tensor | None = None, beta: float = 0.3, total: Total = this_process
) -> Tensor:
    """Mean smooth-L1 distance between scores and grades: quadratic below `beta`, linear above (Girshick 2015).

    Shapes: scores, grades: [batch, labels] float; mask: [batch, labels] bool, False on padding. `total` sums a
    tensor over the processes that share a batch; the mean is over all their labels.
    """
    scores, grades, mask = prepare_lists(scores, grades, mask)
    return masked_mean(F.smooth_l1_loss(scores, grades, beta=beta, reduction="none"), mask, total)


def ordinal_loss(
    scores: Tensor, grades: Tensor, mask: Tensor | None = None, sigma: float = 1.0, total: Total = this_process
) -> Tensor:
    """Mean negative log-likelihood of the grades in a cumulative logit model (McCullagh 1980, proportional odds).

    P(grade > g) = sigmoid(sigma (score - g - 1/2)): fixed thresholds half-way between grades, so scores keep the scale
    of the grades. No grade is the highest one: each has a threshold above it. Up to a constant this is the
    immediate-threshold logistic loss of Rennie and Srebro 2005. Shapes and `total` as in `smooth_l1_loss`.
    """
    scores, grades, mask = prepare_lists(scores, grades, mask)
    above, below = sigma * (scores - grades + 0.5), sigma * (scores - grades - 0.5)
    # sigmoid(above) - sigmoid(below), as a product: the difference is 0 for distant scores.
    from_below = F.softplus(-above) - math.log(-math.expm1(-sigma))
    return masked_mean(F.softplus(below) + from_below.where(grades > 0, 0.0), mask, total)
