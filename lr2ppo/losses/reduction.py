"""Sums and means over the processes that share a batch."""

from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]


def this_process(value: Tensor) -> Tensor:
    """The total over a single process: the value itself."""
    return value


def mean(values: Tensor, total: Total) -> Tensor:
    """The mean of `values [N]` over all processes."""
    return total(values.sum()) / total(torch.tensor(len(values), dtype=values.dtype, device=values.device))
