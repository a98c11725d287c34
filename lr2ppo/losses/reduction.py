"""Sums and means over the processes that share a batch."""

from collections.abc import Callable

from torch import Tensor

Total = Callable[[Tensor], Tensor]


def this_process(value: Tensor) -> Tensor:
    """The total over a single process: the value itself."""
    return value


def mean(values: Tensor, total: Total, counted: Tensor | None = None) -> Tensor:
    """The mean of `values [N]` over all processes, of those only that are `counted [N]`, if given; 0 without any."""
    if counted is not None:
        return masked_mean(values, counted, total)
    # Filled on the device: a number copied to a GPU would be waited for.
    count = total(values.new_full((), len(values)))
    return total(values.sum()) / count.clamp(min=1)


def masked_mean(values: Tensor, mask: Tensor, total: Total) -> Tensor:
    """Return the mean of the values where a mask of the same shape is True, over all processes; 0 without any."""
    # Not by indexing, for whose result a GPU would have to be waited for.
    count = total(mask.sum().to(values.dtype))
    return total(values.where(mask, 0.0).sum()) / count.clamp(min=1)
