"""Sums and means over the processes that share a batch."""

from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]


def this_process(value: Tensor) -> Tensor:
    """The total over a single process: the value itself."""
    return value


def mean(values: Tensor, total: Total) -> Tensor:
    """The mean of `values [N]` over all processes; 0 without any."""
    count = total(torch.tensor(len(values), dtype=values.dtype, device=values.device))
    return total(values.sum()) / count.clamp(min=1)


def masked_mean(values: Tensor, mask: Tensor, total: Total) -> Tensor:
    """Return the mean of the values where a mask of the same shape is True, over all processes; 0 without any."""
    # Not by indexing, for whose result a GPU would have to be waited for.
    count = total(mask.sum().to(values.dtype))
    return total(values.where(mask, 0.0).sum()) / count.clamp(min=1)
