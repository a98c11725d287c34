"""Losses of stage 2, of direct fine-tuning, both over annotated pairs, and of distillation, over any pairs."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lr2ppo.losses.reduction import Total, mean, this_process


def preference_hinge_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: float = 1.0,
    total: Total = this_process,
    counted: Tensor | None = None,
) -> Tensor:
    """Mean hinge loss: the reward of the preferred order should exceed the other's by `margin`.

    Shapes: chosen, rejected: [pairs] float: rewards of the same pair with the better or the worse label first, or
    scores of its better and its worse label. `total` sums a tensor over the processes that share a batch; the mean is
    over all their pairs, without those that are not `counted`, [pairs] bool, if given.
    """
    return mean(F.relu(margin - (chosen - rejected)), total, counted)


def logistic_preference_loss(
    chosen: Tensor, rejected: Tensor, total: Total = this_process, counted: Tensor | None = None
) -> Tensor:
    """Mean negative log-likelihood of the preferences under the Bradley-Terry model (Christiano et al. 2017).

    Shapes, `total` and `counted` as in `preference_hinge_loss`.
    """
    return mean(F.softplus(rejected - chosen), total, counted)


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    beta: float = 1.0,
    total: Total = this_process,
    counted: Tensor | None = None,
) -> Tensor:
    """Direct preference optimization (Rafailov et al. 2023): the logistic loss of `beta` times the implicit rewards.

    A ranker is a policy over the two orders of a pair, whose log odds are the difference of its scores. So the implicit
    reward of a label is its score minus the start's. Shapes: chosen, rejected: [pairs] float, these of the better and
    the worse label; `total` and `counted` as in `preference_hinge_loss`.
    """
    return mean(F.softplus(-beta * (chosen - rejected)), total, counted)


def ipo_loss(
    chosen: Tensor,
    rejected: Tensor,
    beta: float = 1.0,
    total: Total = this_process,
    counted: Tensor | None = None,
) -> Tensor:
    """Identity preference optimization (Azar et al. 2024): the margin should be 1 / (2 `beta`), neither less nor more.

    Shapes, `total` and `counted` as in `dpo_loss`.
    """
    return mean((chosen - rejected - 1 / (2 * beta)).square(), total, counted)


def distillation_loss(
    difference: Tensor,
    margin: Tensor,
    temperature: float = 1.0,
    scale: float = 1.0,
    total: Total = this_process,
    counted: Tensor | None = None,
) -> Tensor:
    """Mean cross entropy of a ranker's preferences and a reward model's soft ones (Hinton et al. 2015), over pairs.

    Shapes: difference, margin: [pairs] float. The ranker prefers a pair's first label with the probability
    sigmoid(`scale` difference of its scores), the reward model with sigmoid(margin / `temperature`): the margin is the
    reward of the order with this label first minus that of the other. `total` and `counted` as in
    `preference_hinge_loss`.
    """
    target = torch.sigmoid(margin / temperature)
    return mean(F.binary_cross_entropy_with_logits(scale * difference, target, reduction="none"), total, counted)
