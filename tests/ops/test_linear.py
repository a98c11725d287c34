"""The fast linear paths give the results of `torch.nn.Linear`, and are used on the right processors."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lr2ppo.ops import linear
from lr2ppo.ops.linear import FastLinear, mkl_lacks_avx512, recycled, suits_onednn, suits_recycling, use_fast_linear

FEW = settings(deadline=None, max_examples=60)
sizes = st.integers(1, 9)
any_shape = given(
    rows=st.lists(sizes, min_size=1, max_size=3), inputs=sizes, outputs=sizes, needs_gradient=st.booleans()
)
Gradients = tuple[Tensor, ...]


def bfloat16() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


@pytest.fixture(autouse=True)
def both_paths_are_used() -> Iterator[None]:
    """Treat the processor as one on which MKL is slow, and small weights as large."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "mkl_lacks_avx512", lambda: True)
        patch.setattr(linear, "LARGE", 0)
        yield


def learn(layers: list[nn.Linear], given: list[Tensor], weights: list[Tensor]) -> Gradients:
    """Compute all layers' outputs, then the gradients of their weighted sum; return both."""
    outputs = [layer(x) for layer, x in zip(layers, given, strict=True)]
    total = torch.stack([(output * weight).sum() for output, weight in zip(outputs, weights, strict=True)]).sum()
    wanted = [x for x in given if x.requires_grad] + [weight for layer in layers for weight in layer.parameters()]
    return *(output.detach() for output in outputs), *torch.autograd.grad(total, wanted)


def two_of_a_shape(
    rows: list[int], inputs: int, outputs: int, needs_gradient: bool, quick: bool = True
) -> Callable[[], Gradients]:
    """Two layers of one shape that learn together, as actor and critic do."""
    torch.manual_seed(0)
    plain = [nn.Linear(inputs, outputs) for _ in range(2)]
    layers = [use_fast_linear(layer) for layer in plain] if quick else plain
    given = [torch.randn(*rows, inputs, requires_grad=needs_gradient) for _ in range(2)]
    weights = [torch.randn(*rows, outputs) for _ in range(2)]
    return lambda: learn(layers, given, weights)


@FEW
@any_shape
def test_onednn_gives_the_outputs_and_gradients_of_torch(
    rows: list[int], inputs: int, outputs: int, needs_gradient: bool
) -> None:
    quick, plain = (two_of_a_shape(rows, inputs, outputs, needs_gradient, quick) for quick in (True, False))
    torch.testing.assert_close(quick(), plain(), rtol=1e-5, atol=1e-4)


@FEW
@any_shape
def test_recycled_copies_give_the_outputs_and_gradients_of_autocast(
    rows: list[int], inputs: int, outputs: int, needs_gradient: bool
) -> None:
    quick, torchs = (two_of_a_shape(rows, inputs, outputs, needs_gradient, quick) for quick in (True, False))
    with bfloat16():
        recycled_, plain = quick(), torchs()
    assert [each.dtype for each in recycled_] == [each.dtype for each in plain]
    torch.testing.assert_close(recycled_, plain, rtol=0.02, atol=0.02)


def test_a_model_that_was_used_in_inference_mode_learns_afterwards() -> None:
    act = two_of_a_shape([3], 31, 37, needs_gradient=True)
    with torch.inference_mode(), bfloat16():
        FastLinear(31, 37)(torch.randn(3, 31))
    with bfloat16():
        assert all(each.isfinite().all() for each in act())


def test_each_path_is_used_only_for_its_inputs() -> None:
    x, weight = torch.randn(4, 8), torch.randn(16, 8)
    assert suits_onednn(x)
    assert not suits_onednn(x.double())
    assert not suits_onednn(x[:0])
    assert not suits_recycling(x, weight)
    with bfloat16():
        assert not suits_onednn(x)
        assert suits_recycling(x, weight)
        assert not suits_recycling(x, weight[:1])


def test_recycled_tensors_in_use_share_no_numbers() -> None:
    shape = torch.Size([3, 5])
    tensors = [recycled(shape, torch.float32).fill_(number) for number in range(3)]
    row = tensors.pop()[1]
    tensors += [recycled(shape, torch.float32).fill_(number) for number in (3, 4)]
    assert row.tolist() == [2.0] * 5
    assert [tensor.unique().tolist() for tensor in tensors] == [[0.0], [1.0], [3.0], [4.0]]


@pytest.mark.parametrize(
    ("vendor", "capability", "lacks"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("GenuineIntel", "AVX512", False),
        ("AuthenticAMD", "AVX2", False),
    ],
)
def test_onednn_is_for_avx512_that_mkl_does_not_use(
    vendor: str, capability: str, lacks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n", encoding="utf-8")
    monkeypatch.setattr(linear, "PROCESSOR", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert mkl_lacks_avx512.__wrapped__() is lacks


def test_use_fast_linear_changes_only_the_linear_layers_of_another_librarys_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3, bias=False), nn.Bilinear(3, 3, 2))
    x = torch.randn(4, 5)
    before, names = model[:3](x), list(model.state_dict())
    use_fast_linear(model)
    assert [type(module) for module in model] == [FastLinear, nn.GELU, nn.Linear, nn.Bilinear]
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model[:3](x), before)
