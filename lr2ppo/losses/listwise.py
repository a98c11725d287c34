"""Losses of stage 1 over whole lists; lists whose labels all have one grade teach no order and are left out."""

import torch
from torch import Tensor

from lr2ppo.losses.lists import differences, has_order, is_better, or_one, prepare_lists
from lr2ppo.losses.reduction import Total, masked_mean, this_process


def listnet_loss(scores: Tensor, grades: Tensor, mask: Tensor | None = None, total: Total = this_process) -> Tensor:
    """ListNet (Cao et al. 2007): cross entropy of the top-one probabilities, softmax of the grades and of the scores.

    Shapes: scores, grades: [batch, labels] float; mask: [batch, labels] bool, False on padding. `total` sums a
    tensor over the processes that share a batch; the mean is over their lists with labels of different grades.
    """
    scores, grades, mask = prepare_lists(scores, grades, mask)
    return _cross_entropy(_masked(grades, mask).softmax(-1), scores, grades, mask, total)


def softmax_loss(scores: Tensor, grades: Tensor, mask: Tensor | None = None, total: Total = this_process) -> Tensor:
    """Softmax cross entropy (Bruch et al. 2019): a label's target is its share of the list's sum of grades.

    Shapes and mean as in `listnet_loss`.
    """
    scores, grades, mask = prepare_lists(scores, grades, mask)
    share = grades / or_one(grades.sum(-1, keepdim=True))
    return _cross_entropy(share, scores, grades, mask, total)


def listmle_loss(scores: Tensor, grades: Tensor, mask: Tensor | None = None, total: Total = this_process) -> Tensor:
    """ListMLE (Xia et al. 2008): negative log-likelihood of the grades' order in the Plackett-Luce model.

    Labels of equal grades do not compete: each is drawn from itself and all labels of lower grades, as in Zhu and
    Klabjan 2020 ("unique rating"). So ties need no random order. Shapes and mean as in `listnet_loss`.
    """
    scores, grades, mask = prepare_lists(scores, grades, mask)
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    lead = (-differences(scores)).masked_fill(~(is_better(grades, mask) | itself), -torch.inf)
    return masked_mean(lead.logsumexp(-1).sum(-1), has_order(grades, mask), total)


def _cross_entropy(target: Tensor, scores: Tensor, grades: Tensor, mask: Tensor, total: Total) -> Tensor:
    """The mean cross entropy of target probabilities [batch, labels], 0 on padding, and the softmax of the scores."""
    loss = -(target * _masked(scores, mask).log_softmax(-1)).where(mask, 0.0).sum(-1)
    return masked_mean(loss, has_order(grades, mask), total)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """Make the softmax of padding 0, without minus infinity, which would make that of an empty list NaN."""
    return values.masked_fill(~mask, torch.finfo(values.dtype).min)
