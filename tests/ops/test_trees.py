"""Dataclasses of tensors as one value."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lr2ppo.ops.take import take
from lr2ppo.ops.trees import map_tensors, shape_of, tensors_of, to_device


@dataclass(frozen=True)
class Leaf:
    values: Tensor
    number: int


@dataclass(frozen=True)
class Tree:
    name: str
    leaf: Leaf
    flags: Tensor
    other: Leaf | None = None


def make_tree(size: int = 3, number: int = 7, name: str = "a") -> Tree:
    return Tree(name, Leaf(torch.arange(size, dtype=torch.float64), number), torch.tensor([[True, False]]))


def test_tensors_come_in_the_order_of_the_fields_and_are_replaced_in_it() -> None:
    tree = make_tree()
    assert [tensor.dtype for tensor in tensors_of(tree)] == [torch.float64, torch.bool]
    doubled = map_tensors(tree, lambda tensor: tensor + tensor)
    assert torch.equal(doubled.leaf.values, 2 * tree.leaf.values)
    assert (doubled.name, doubled.leaf.number, doubled.other) == ("a", 7, None)
    assert torch.equal(tree.leaf.values, make_tree().leaf.values)


def test_shapes_and_numbers_make_a_difference_and_names_none() -> None:
    assert shape_of(make_tree()) == shape_of(make_tree(name="b"))
    assert hash(shape_of(make_tree())) == hash(shape_of(make_tree(name="b")))
    assert shape_of(make_tree()) != shape_of(make_tree(size=4))
    assert shape_of(make_tree()) != shape_of(make_tree(number=8))


@pytest.mark.gpu
def test_a_tree_comes_to_a_gpu_as_it_is() -> None:
    large = Tree("a", Leaf(torch.randn(2**19, dtype=torch.float64), 1), torch.tensor([True, False, True]))
    for tree in (make_tree(), large):
        moved = to_device(tree, torch.device("cuda"))
        assert all(tensor.is_cuda for tensor in tensors_of(moved))
        assert all(torch.equal(mine.cpu(), own) for mine, own in zip(tensors_of(moved), tensors_of(tree), strict=True))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_values_are_taken_with_the_sum_of_their_gradients(device: str) -> None:
    values = torch.tensor([[1.0, 2.0, 3.0]], device=device, requires_grad=True)
    taken = take(values, torch.tensor([[2, 0, 2]], device=device))
    assert taken.tolist() == [[3.0, 1.0, 3.0]]
    (taken * torch.tensor([1.0, 10.0, 100.0], device=device)).sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[10.0, 0.0, 101.0]]
