"""Dataclasses of tensors, numbers and further such dataclasses, as one value."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

D = TypeVar("D", bound=Any)
# Smaller tensors travel to a GPU in one piece: each transfer costs more than their bytes.
SMALL, ALIGNMENT = 2**20, 16


def tensors_of(tree: object) -> Iterator[Tensor]:
    """Yield the tensors of a tree in the order of its fields."""
    if isinstance(tree, Tensor):
        yield tree
    elif is_dataclass(tree):
        for field in fields(tree):
            yield from tensors_of(getattr(tree, field.name))


def map_tensors(tree: D, function: Callable[[Tensor], Tensor]) -> D:
    """Return the tree with each tensor replaced, in the order of `tensors_of`."""
    mapped: Any = tree
    if isinstance(mapped, Tensor):
        mapped = function(mapped)
    elif is_dataclass(mapped) and not isinstance(mapped, type):
        mapped = replace(mapped, **{f.name: map_tensors(getattr(mapped, f.name), function) for f in fields(mapped)})
    return cast(D, mapped)


def shape_of(tree: object) -> object:
    """Return what a computation with a tree depends on besides the content of tensors: their shapes, and numbers."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype
    if is_dataclass(tree):
        return tuple(shape_of(getattr(tree, field.name)) for field in fields(tree))
    return tree if isinstance(tree, int | None) else type(tree)


def to_device(tree: D, device: torch.device) -> D:
    """Return the tree on a device; nothing waits for a transfer to a GPU."""
    if device.type != "cuda":
        return map_tensors(tree, lambda own: own.to(device))
    small = [tensor for tensor in tensors_of(tree) if tensor.is_cpu and tensor.nbytes < SMALL]
    starts, end = [], 0
    for tensor in small:
        starts.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    host = torch.empty(end, dtype=torch.uint8, pin_memory=True)
    for tensor, start in zip(small, starts, strict=True):
        _part(host, tensor, start).copy_(tensor)
    there = host.to(device, non_blocking=True)
    moved = iter([_part(there, tensor, start) for tensor, start in zip(small, starts, strict=True)])
    is_small = {id(tensor) for tensor in small}
    return map_tensors(tree, lambda own: next(moved) if id(own) in is_small else own.to(device, non_blocking=True))


def _part(buffer: Tensor, tensor: Tensor, start: int) -> Tensor:
    """The part of a buffer of bytes that holds a tensor."""
    return buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
