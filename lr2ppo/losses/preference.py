"""Losses of stage 2, over annotated pairs."""

import torch.nn.functional as F
from torch import Tensor

from lr2ppo.losses.reduction import Total, mean, this_process


def preference_hinge_loss(chosen: Tensor, rejected: Tensor, margin: float = 1.0, total: Total = this_process) -> Tensor:
    """Mean hinge loss: the reward of the preferred order should exceed the other's by `margin`.

    Shapes: chosen, rejected: [pairs] float, rewards of the same pair with the better or the worse label first.
    `total` sums a tensor over the processes that share a batch; the mean is over all their pairs.
    """
    return mean(F.relu(margin - (chosen - rejected)), total)


def logistic_preference_loss(chosen: Tensor, rejected: Tensor, total: Total = this_process) -> Tensor:
    """Mean negative log-likelihood of the preferences under the Bradley-Terry model (Christiano et al. 2017).

    Shapes and `total` as in `preference_hinge_loss`.
    """
    return mean(F.softplus(rejected - chosen), total)
