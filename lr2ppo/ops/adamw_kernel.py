"""The kernel of `MixedAdamW` in Triton: one pass over weights, moments and gradients, where torch makes several."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048


# Triton would read types as code, other than that of a constant.
def _update(  # type: ignore[no-untyped-def]
    weights,
    copies,
    gradients,
    averages,
    squares,
    corrections,
    skip_at,
    scale_at,
    rate_at,
    size,
    decay,
    beta2,
    of_average,
    of_square,
    eps,
    block: tl.constexpr,
):
    """Update one block of numbers; `of_average` and `of_square` are 1 minus the betas."""
    if tl.load(skip_at) != 0:
        return
    at = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = at < size
    gradient = tl.load(gradients + at, mask=inside).to(tl.float32) * tl.load(scale_at)
    average = tl.load(averages + at, mask=inside)
    average += (gradient - average) * of_average
    square = tl.load(squares + at, mask=inside) * beta2 + gradient * gradient * of_square
    step = average / tl.load(corrections) / (tl.sqrt(square / tl.load(corrections + 1)) + eps)
    weight = tl.load(weights + at, mask=inside)
    weight -= tl.load(rate_at) * (decay * weight + step)
    tl.store(averages + at, average, mask=inside)
    tl.store(squares + at, square, mask=inside)
    tl.store(weights + at, weight, mask=inside)
    tl.store(copies + at, weight.to(tl.bfloat16), mask=inside)


_kernel = triton.jit(_update)


def update_weight(
    weight: Tensor,
    copy: Tensor,
    average: Tensor,
    square: Tensor,
    *,
    corrections: Tensor,
    skip: Tensor,
    scale: Tensor | None,
    rate: Tensor,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Update a float32 weight, its bfloat16 copy and its moments by the copy's gradient (Loshchilov and Hutter 2019).

    `corrections [2]` are those of the moments' bias, 1 - beta^step; they and the scalars `skip`, `scale` and `rate` are
    float32 on the device of the weight.
    Nothing changes if `skip` is not 0. Raises ValueError if a tensor is not contiguous.
    """
    gradient = copy.grad
    if gradient is None or not all(tensor.is_contiguous() for tensor in (weight, copy, gradient, average, square)):
        raise ValueError("wanted contiguous tensors and a gradient")
    size = weight.numel()
    beta1, beta2 = betas
    _kernel[(triton.cdiv(size, BLOCK),)](
        weight, copy, gradient, average, square, corrections, skip, torch.ones_like(skip) if scale is None else scale,
        rate, size, weight_decay, beta2, 1 - beta1, 1 - beta2, eps, block=BLOCK,
    )  # fmt: skip
