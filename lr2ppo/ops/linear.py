"""Linear layers whose products are computed where this processor is quickest at them; put into models from outside."""

import weakref
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)

PROCESSOR = Path("/proc/cpuinfo")
LARGE = 2**25
_free_pages: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)


class QuickLinear(nn.Linear):
    """`torch.nn.Linear` with two shorter ways on a CPU.

    In float32 oneDNN multiplies where torch's own choice, MKL, is slow. In bfloat16 the copies of a weight that is
    larger than what it is multiplied with lie where earlier ones lay.
    """

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`x [..., I]` times a weight `[O, I]`, and a bias added, in the way that is quickest here: `[..., O]`."""
    product: Tensor
    if suits_onednn(x):
        product = _OneDNNProduct.apply(x, weight, bias)
    elif suits_recycling(x, weight):
        product = _BFloat16Product.apply(x.bfloat16(), weight, bias)
    else:
        product = F.linear(x, weight, bias)
    return product


def quicken(model: M) -> M:
    """Have the plain linear layers of a model compute as `QuickLinear` does; returns the model."""
    for module in model.modules():
        if type(module) is nn.Linear and module.bias is not None:
            module.__class__ = QuickLinear
    return model


def suits_onednn(x: Tensor) -> bool:
    """Whether a product with `x` is one that oneDNN computes sooner than what torch takes of itself."""
    return _may_choose(x) and mkl_lacks_avx512() and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def suits_recycling(x: Tensor, weight: Tensor) -> bool:
    """Whether a product with `x` is in bfloat16, and its weight the larger of the two."""
    return (
        _may_choose(x)
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and weight.numel() > x.numel()
    )


def _may_choose(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() > 0 and not torch.compiler.is_compiling()


@cache
def mkl_lacks_avx512() -> bool:
    """Whether this processor has AVX-512 that MKL does not use: it keeps to AVX2 where the processor is not Intel's."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and PROCESSOR.exists()
        and "GenuineIntel" not in PROCESSOR.read_text(encoding="utf-8", errors="replace")
    )


class _OneDNNProduct(torch.autograd.Function):
    """`x [..., I]` times a weight `[O, I]`, and a bias added; keeps no copies in oneDNN's own layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.to_mkldnn(), weight, bias).to_dense()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, gradient_rows = x.flatten(0, -2), gradient.flatten(0, -2)
        # oneDNN hands a weight's gradient over as a copy: 2 GB more for the flatten head's first layer.
        wide = weight.numel() > x.numel()
        of_x, of_weight, of_bias = torch.ops.aten.mkldnn_linear_backward(
            rows.to_mkldnn(), gradient_rows.to_mkldnn(), weight, (ctx.needs_input_grad[0], not wide, not wide)
        )
        if wide:
            of_weight = torch.mm(gradient_rows.t(), rows, out=recycled(weight.shape, weight.dtype))
            of_bias = gradient_rows.sum(0)
        of_bias = of_bias if ctx.needs_input_grad[2] else None
        return None if of_x is None else of_x.to_dense().view_as(x), of_weight, of_bias


class _BFloat16Product(torch.autograd.Function):
    """As autocast, but for where its copies of a large weight and of the gradient lie: all in the same pages."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x, recycled(weight.shape, x.dtype).copy_(weight), bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, gradient_rows = x.flatten(0, -2), gradient.flatten(0, -2)
        copy = recycled(weight.shape, x.dtype).copy_(weight)
        of_x = gradient_rows @ copy
        torch.mm(gradient_rows.t(), rows, out=copy)
        of_weight = recycled(weight.shape, weight.dtype).copy_(copy)
        of_bias = gradient_rows.sum(0).to(weight.dtype) if ctx.needs_input_grad[2] else None
        return of_x.view_as(x), of_weight, of_bias


def recycled(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An empty tensor on a CPU, in the pages of one of its size that is gone: fresh gigabytes cost most of a second."""
    size = shape.numel() * dtype.itemsize
    if size < LARGE:
        return torch.empty(shape, dtype=dtype)
    free = _free_pages[size]
    pages = free.pop() if free else torch.empty(size, dtype=torch.uint8).numpy()
    # Another array of the same pages: the tensor alone holds it, so that its end is the tensor's.
    lent = pages[:]
    weakref.finalize(lent, free.append, pages).atexit = False
    return torch.from_numpy(lent).view(dtype).view(shape)
