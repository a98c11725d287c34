"""Losses of stage 1 that make NDCG differentiable; lists whose labels all have one grade are left out."""

import torch
from torch import Tensor

from lr2ppo.losses.lists import differences, has_order, or_one, prepare_lists
from lr2ppo.losses.reduction import Total, masked_mean, this_process
from lr2ppo.ops.dcg import dcg, discounts, gains, ideal_dcg

SINKHORN_STEPS = 50


def approx_ndcg_loss(
    scores: Tensor, grades: Tensor, mask: Tensor | None = None, alpha: float = 10.0, total: Total = this_process
) -> Tensor:
    """1 - ApproxNDCG (Qin et al. 2010): ranks are counted with sigmoid(alpha difference) in place of comparisons.

    Shapes: scores, grades: [batch, labels] float; mask: [batch, labels] bool, False on padding. `total` sums a
    tensor over the processes that share a batch; the mean is over their lists with labels of different grades.
    """
    scores, grades, mask = prepare_lists(scores, grades, mask)
    ahead = torch.sigmoid(-alpha * differences(scores)) * mask.unsqueeze(-2)
    # A label counts as half ahead of itself.
    rank = ahead.sum(-1) + 0.5
    gain = gains(grades, mask)
    ndcg = (gain * discounts(rank)).sum(-1) / or_one(ideal_dcg(gain, None))
    return masked_mean(1.0 - ndcg, has_order(grades, mask), total)


def neural_ndcg_loss(
    scores: Tensor,
    grades: Tensor,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    k: int | None = None,
    total: Total = this_process,
) -> Tensor:
    """1 - NeuralNDCG@k (Pobrotyn and Bialobrzeski 2021): gains are sorted by a relaxed permutation of the scores.

    The relaxation is NeuralSort's (Grover et al. 2019), then scaled to rows and columns that sum to 1, so that each
    gain counts once. Shapes and mean as in `approx_ndcg_loss`.
    """
    scores, grades, mask = prepare_lists(scores, grades, mask)
    gain = gains(grades, mask)
    permutation = _scale(_neural_sort(scores, mask, temperature))
    # Not a matrix product, which autocast would compute in less than float32.
    ranked = (permutation * gain.unsqueeze(-2)).sum(-1)
    return masked_mean(1.0 - dcg(ranked, k) / or_one(ideal_dcg(gain, k)), has_order(grades, mask), total)


def _neural_sort(scores: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """The probability that rank r is label j's: [batch, r, j], 0 on padding and after the last label's rank."""
    labels = mask.sum(-1, keepdim=True)
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device)
    distance = (differences(scores).abs() * mask.unsqueeze(-2)).sum(-1)
    weight = (labels + 1 - 2 * rank).unsqueeze(-1)
    logits = (weight * scores.unsqueeze(-2) - distance.unsqueeze(-2)) / temperature
    valid = (rank <= labels).unsqueeze(-1) & mask.unsqueeze(-2)
    return logits.masked_fill(~valid, torch.finfo(logits.dtype).min).softmax(-1).where(valid, 0.0)


def _scale(matrix: Tensor) -> Tensor:
    """Scale rows and columns in turn towards sums of 1 (Sinkhorn 1964); sums of 0, those of padding, stay."""
    for _ in range(SINKHORN_STEPS):
        # Columns last: they sum to 1 exactly, so no gain counts more than once.
        for dimension in (-1, -2):
            matrix = matrix / or_one(matrix.sum(dimension, keepdim=True))
    return matrix
