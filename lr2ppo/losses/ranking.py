"""Losses of stage 1, over lists of graded labels."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lr2ppo.losses.reduction import Total, masked_mean, this_process


def smooth_l1_loss(
    scores: Tensor, grades: Tensor, mask: Tensor | None = None, beta: float = 0.3, total: Total = this_process
) -> Tensor:
    """Mean smooth-L1 distance between scores and grades: quadratic below `beta`, linear above.

    Shapes: scores, grades: [batch, labels] float; mask: [batch, labels] bool, False on padding. `total` sums a
    tensor over the processes that share a batch; the mean is over all their labels.
    """
    loss = F.smooth_l1_loss(scores, grades.to(scores.dtype), beta=beta, reduction="none")
    return masked_mean(loss, torch.ones_like(loss, dtype=torch.bool) if mask is None else mask, total)


def ranknet_loss(scores: Tensor, grades: Tensor, mask: Tensor | None = None, total: Total = this_process) -> Tensor:
    """Mean logistic loss of the score differences of all label pairs of different grades (Burges et al. 2005).

    Shapes and `total` as in `smooth_l1_loss`; 0 if no list has such a pair.
    """
    better = grades.unsqueeze(-1) > grades.unsqueeze(-2)
    if mask is not None:
        better = better & mask.unsqueeze(-1) & mask.unsqueeze(-2)
    loss = F.softplus(scores.unsqueeze(-2) - scores.unsqueeze(-1))
    return masked_mean(loss, better, total)
