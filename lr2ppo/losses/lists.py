"""Lists of labels as losses read them: masked, and compared pair by pair."""

import torch
from torch import Tensor


def prepare_lists(scores: Tensor, grades: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return scores and grades in float32 or more, 0 on padding, and their mask: [batch, labels] each."""
    mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
    dtype = torch.promote_types(scores.dtype, torch.float32)
    # Replaced, not multiplied: padding may hold anything, NaN too.
    return scores.to(dtype).where(mask, 0.0), grades.to(dtype).where(mask, 0.0), mask


def is_better(grades: Tensor, mask: Tensor) -> Tensor:
    """Tell whether label i has a higher grade than label j, both no padding: [batch, i, j] bool."""
    return (grades.unsqueeze(-1) > grades.unsqueeze(-2)) & mask.unsqueeze(-1) & mask.unsqueeze(-2)


def has_order(grades: Tensor, mask: Tensor) -> Tensor:
    """Tell whether a list has labels of different grades; without them, it teaches no order: [batch] bool."""
    return is_better(grades, mask).flatten(1).any(-1)


def differences(values: Tensor) -> Tensor:
    """The value of label i minus that of label j: [batch, i, j]."""
    return values.unsqueeze(-1) - values.unsqueeze(-2)


def or_one(divisor: Tensor) -> Tensor:
    """Replace sums of 0 by 1, for a quotient of 0 with a gradient of 0."""
    return divisor.where(divisor > 0, 1.0)
