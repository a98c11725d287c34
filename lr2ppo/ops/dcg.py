"""What metrics and losses share of NDCG: gain 2^grade - 1, discount 1 / log2(rank + 1), cut after `k` ranks or not."""

import torch
from torch import Tensor


def gains(grades: Tensor, mask: Tensor) -> Tensor:
    """The gain of each label, 0 on padding: [batch, labels], in the type of the grades."""
    return (2.0**grades - 1.0) * mask


def order(scores: Tensor, mask: Tensor) -> Tensor:
    """Positions by descending score, padding last even after scores of minus infinity: [batch, labels] long.

    Ties keep the given order.
    """
    by_score = scores.double().argsort(dim=-1, descending=True, stable=True)
    valid_first = mask.gather(-1, by_score).long().argsort(dim=-1, descending=True, stable=True)
    return by_score.gather(-1, valid_first)


def ranks(scores: Tensor, mask: Tensor) -> Tensor:
    """The rank of each label by descending score, from 1: [batch, labels] long."""
    return order(scores, mask).argsort(dim=-1) + 1


def discounts(at: Tensor, k: int | None = None) -> Tensor:
    """The discount at each rank, 0 after rank `k`, in the type of the ranks; whole numbers give the default type."""
    discount = 1.0 / torch.log2(at + 1.0)
    return discount if k is None else discount.where(at <= k, 0.0)


def all_discounts(like: Tensor) -> Tensor:
    """The discounts of the ranks from 1 of a list as long as the last dimension: [labels], in the type of `like`."""
    return discounts(torch.arange(1, like.shape[-1] + 1, dtype=like.dtype, device=like.device))


def dcg(ranked: Tensor, k: int | None) -> Tensor:
    """The discounted cumulative gain of gains in the order of their ranks: [batch]."""
    return (ranked * all_discounts(ranked))[..., :k].sum(-1)


def ideal_dcg(of: Tensor, k: int | None) -> Tensor:
    """The discounted cumulative gain of the best order of gains: [batch]."""
    return dcg(of.sort(dim=-1, descending=True).values, k)
