"""Linear layers that use the fastest matrix product for this processor; models are converted after they are built."""

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
CPU = torch.device("cpu")
_free_pages: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)


class FastLinear(nn.Linear):
    """`torch.nn.Linear` with two faster paths on a CPU.

    In float32, oneDNN replaces torch's default, MKL, on processors where that is slow. In bfloat16, the copies of a
    weight that is larger than its input reuse the memory of earlier copies.
    """

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply a linear layer by the fastest path: `x [..., I]`, weight `[O, I]`, bias `[O]` -> `[..., O]`."""
    product: Tensor
    if suits_onednn(x):
        product = _OneDNNProduct.apply(x, weight, bias)
    elif suits_recycling(x, weight):
        product = _BFloat16Product.apply(x.bfloat16(), weight, bias)
    else:
        product = F.linear(x, weight, bias)
    return product


def use_fast_linear(model: M) -> M:
    """Turn the plain linear layers of a model into `FastLinear` in place; return the model."""
    for module in model.modules():
        if type(module) is nn.Linear and module.bias is not None:
            module.__class__ = FastLinear
    return model


def suits_onednn(x: Tensor) -> bool:
    """Whether oneDNN computes a product with `x` faster than torch's default."""
    return _may_choose(x) and mkl_lacks_avx512() and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def suits_recycling(x: Tensor, weight: Tensor) -> bool:
    """Whether a product with `x` is in bfloat16 and its weight is larger than `x`."""
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
    """Whether this processor has AVX-512 but MKL does not use it: MKL uses AVX2 on processors not made by Intel."""
    return (
        torch.backends.mkl.is_available()
        and torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and PROCESSOR.exists()
        and "GenuineIntel" not in PROCESSOR.read_text(encoding="utf-8", errors="replace")
    )


class _OneDNNProduct(torch.autograd.Function):
    """Linear layer by oneDNN: `x [..., I]`, weight `[O, I]`, bias `[O]`; keeps no copies in oneDNN's layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(x.to_mkldnn(), weight, bias).to_dense()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, gradient_rows = x.flatten(0, -2), gradient.flatten(0, -2)
        # oneDNN returns a weight's gradient as a copy: 2 GB more for the flatten head's first layer.
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
    """Linear layer as autocast computes it, with the copies of a large weight and its gradient in the same pages."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_type = bias.dtype
        return F.linear(x, _in_type_of(x, weight), bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        rows, gradient_rows = x.flatten(0, -2), gradient.flatten(0, -2)
        of_x = gradient_rows @ _in_type_of(x, weight)
        of_weight = torch.mm(gradient_rows.t(), rows, out=recycled(weight.shape, x.dtype))
        if weight.dtype != x.dtype:
            of_weight = recycled(weight.shape, weight.dtype).copy_(of_weight)
        of_bias = gradient_rows.sum(0).to(ctx.bias_type) if ctx.needs_input_grad[2] else None
        return of_x.view_as(x), of_weight, of_bias


def _in_type_of(x: Tensor, weight: Tensor) -> Tensor:
    return weight if weight.dtype == x.dtype else recycled(weight.shape, x.dtype).copy_(weight)


def recycled(shape: torch.Size, dtype: torch.dtype, device: torch.device = CPU) -> Tensor:
    """An empty tensor; on a CPU in the pages of a freed one of the same size: fresh gigabytes cost most of a second."""
    size = shape.numel() * dtype.itemsize
    if size < LARGE or device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    free = _free_pages[size]
    pages = free.pop() if free else torch.empty(size, dtype=torch.uint8).numpy()
    # Another array of the same pages, held only by the tensor: it is finalized when the tensor is freed.
    lent = pages[:]
    weakref.finalize(lent, free.append, pages).atexit = False
    return torch.from_numpy(lent).view(dtype).view(shape)
