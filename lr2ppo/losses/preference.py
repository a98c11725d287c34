"""Losses of stage 2 and of direct fine-tuning, over annotated pairs."""

import torch.nn.functional as F
from torch import Tensor

from lr2ppo.losses.reduction import Total, mean, this_process


def preference_hinge_loss(chosen: Tensor, rejected: Tensor, margin: float = 1.0, total: Total = this_process) -> Tensor:
    """Mean hinge loss: the reward of the preferred order should exceed the other's by `margin`.

    Shapes: chosen, rejected: [pairs] float: rewards of the same pair with the better or the worse label first, or
    scores of its better and its worse label. `total` sums a tensor over the processes that share a batch; the mean is
    over all their pairs.
    """
    return mean(F.relu(margin - (chosen - rejected)), total)


def logistic_preference_loss(chosen: Tensor, rejected: Tensor, total: Total = this_process) -> Tensor:
    """Mean negative log-likelihood of the preferences under the Bradley-Terry model (Christiano et al. 2017).

    Shapes and `total` as in `preference_hinge_loss`.
    """
    return mean(F.softplus(rejected - chosen), total)


def dpo_loss(chosen: Tensor, rejected: Tensor, beta: float = 1.0, total: Total = this_process) -> Tensor:
    """Direct preference optimization (Rafailov et al. 2023): the logistic loss of `beta` times the implicit rewards.

    A ranker is a policy over the two orders of a pair, whose log odds are the difference of its scores. So the implicit
    reward of a label is its score minus the start's. Shapes: chosen, rejected: [pairs] float, these of the better and
    the worse label; `total` as in `preference_hinge_loss`.
    """
    return mean(F.softplus(-beta * (chosen - rejected)), total)


def ipo_loss(chosen: Tensor, rejected: Tensor, beta: float = 1.0, total: Total = this_process) -> Tensor:
    """Identity preference optimization (Azar et al. 2024): the margin should be 1 / (2 `beta`), neither less nor more.

    Shapes and `total` as in `dpo_loss`.
    """
    return mean((chosen - rejected - 1 / (2 * beta)).square(), total)
