"""Published checkpoints: inferred sizes, conversion in both directions, and errors for files that do not fit."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from lr2ppo.config.schema import ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.published import (
    HEADS,
    MODULES,
    load_partial_order,
    load_published,
    load_ranker,
    published_tensors,
    write_published,
)
from lr2ppo.models.weights import Model, load_model, save_model

TOKENS, FRAMES, WIDTH = 5, 3, 16
LOADERS: dict[type[RelevanceRanker] | type[PartialOrderModel], Callable[..., Model]] = {
    RelevanceRanker: load_ranker,
    PartialOrderModel: load_partial_order,
}
kinds = pytest.mark.parametrize("kind", list(LOADERS), ids=lambda kind: kind.__name__)


def shape(**changes: object) -> ModelConfig:
    config = ModelConfig(
        head="flatten", attention="published", width=WIDTH, heads=HEADS, dropout=0.1, text_tokens=TOKENS,
        frames=FRAMES, text_width=WIDTH, image_width=WIDTH,
    )  # fmt: skip
    return config.model_copy(update=changes)


def checkpoint(kind: type[RelevanceRanker] | type[PartialOrderModel] = RelevanceRanker) -> dict[str, Tensor]:
    return published_tensors(kind(shape()))


def write(tensors: dict[str, Tensor], folder: Path) -> Path:
    torch.save(tensors, folder / "model.bin")
    return folder / "model.bin"


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(list(LOADERS)),
    tokens=st.integers(1, 6),
    frames=st.integers(1, 4),
    width=st.sampled_from([8, 16, 24]),
    text_width=st.integers(1, 20),
    image_width=st.integers(1, 20),
    suffix=st.sampled_from([".bin", ".safetensors"]),
)
def test_sizes_are_found_and_nothing_changes_on_the_way_there_and_back(
    tmp_path: Path,
    kind: type[RelevanceRanker] | type[PartialOrderModel],
    tokens: int,
    frames: int,
    width: int,
    text_width: int,
    image_width: int,
    suffix: str,
) -> None:
    config = shape(
        text_tokens=tokens, frames=frames, width=width, text_width=text_width, image_width=image_width
    )  # fmt: skip
    model = kind(config)
    save_model(tmp_path / "run" / "best", model)
    write_published(tmp_path / "run", tmp_path / f"published{suffix}")
    back = LOADERS[kind](tmp_path / f"published{suffix}", text_tokens=tokens, frames=frames)
    assert back.encoder.config == config
    assert not back.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name


@kinds
def test_the_names_are_the_published_ones(kind: type[RelevanceRanker] | type[PartialOrderModel]) -> None:
    tensors = checkpoint(kind)
    assert {name.rpartition(".")[0] for name in tensors} <= set(MODULES)
    assert tensors["out_layer.fc1.weight"].shape == (4 * WIDTH, (TOKENS + FRAMES) * WIDTH)
    assert ("xitt.0.0.1.fn.1.3.weight" in tensors) == (kind is PartialOrderModel)


@kinds
def test_which_of_the_two_models_a_file_holds_is_found_out(
    kind: type[RelevanceRanker] | type[PartialOrderModel], tmp_path: Path
) -> None:
    path = write(checkpoint(kind), tmp_path)
    assert isinstance(load_published(path, TOKENS, FRAMES), kind)
    other = load_partial_order if kind is RelevanceRanker else load_ranker
    with pytest.raises(UserError, match=f"holds a {kind.__name__}, wanted a .*; read it with {LOADERS[kind].__name__}"):
        other(path, TOKENS, FRAMES)


@pytest.mark.parametrize(
    "given_sizes", [{}, {"text_tokens": TOKENS}, {"frames": FRAMES}, {"text_tokens": 6, "frames": 3}]
)
def test_sizes_of_the_flatten_head_that_do_not_fit_are_refused_with_the_sum(
    given_sizes: dict[str, int], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"model\.bin: .*implies text_tokens \+ frames = 8, but .* were given"):
        load_ranker(write(checkpoint(), tmp_path), **given_sizes)


@pytest.mark.parametrize("name", list(checkpoint(PartialOrderModel)))
def test_a_missing_tensor_is_named(name: str, tmp_path: Path) -> None:
    tensors = checkpoint(PartialOrderModel)
    del tensors[name]
    with pytest.raises(UserError, match=f"1 fault found.*\n  {name}: is missing$"):
        load_partial_order(write(tensors, tmp_path), TOKENS, FRAMES)


@pytest.mark.parametrize("name", sorted(set(checkpoint()) - {"out_layer.fc1.weight"}))
def test_a_misshapen_tensor_is_named(name: str, tmp_path: Path) -> None:
    tensors = checkpoint()
    tensors[name] = torch.cat([tensors[name], tensors[name]])
    found, wanted = list(tensors[name].shape), list(checkpoint()[name].shape)
    with pytest.raises(UserError) as caught:
        load_ranker(write(tensors, tmp_path), TOKENS, FRAMES)
    assert str(caught.value).endswith(f"\n  {name}: found shape {found}, wanted {wanted}")


def test_superfluous_tensors_and_such_without_floats_are_named(tmp_path: Path) -> None:
    tensors = checkpoint() | {"xit.0.1.0.weight": torch.zeros(1), "head.bias": torch.zeros(1, dtype=torch.long)}
    with pytest.raises(UserError) as caught:
        load_ranker(write(tensors, tmp_path), TOKENS, FRAMES)
    assert "  head.bias: found torch.int64, wanted floats" in str(caught.value)
    assert "  xit.0.1.0.weight: is not part of this model" in str(caught.value)


def test_half_precision_weights_are_read_as_single(tmp_path: Path) -> None:
    tensors = checkpoint()
    halves = {name: tensor.half() for name, tensor in tensors.items()}
    save_file(halves, tmp_path / "half.safetensors")
    ranker = load_ranker(tmp_path / "half.safetensors", TOKENS, FRAMES)
    torch.testing.assert_close(ranker.score.weight, tensors["head.weight"], rtol=1e-3, atol=1e-4)
    assert ranker.score.weight.dtype == torch.float32


def test_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds embedding\.word\.weight and the like, wanted a published ranker"):
        load_ranker(write({"embedding.word.weight": torch.zeros(3, 16)}, tmp_path))
    with pytest.raises(UserError, match="found width 0, wanted a multiple of the 8 attention heads"):
        load_ranker(write({"head.weight": torch.zeros(1, 16)}, tmp_path))


def test_a_model_that_the_published_program_could_not_use_is_not_written(tmp_path: Path) -> None:
    pooled = ModelConfig(head="pooled", attention="scaled", width=WIDTH, heads=4, dropout=0.0)
    save_model(tmp_path / "best", RelevanceRanker(pooled))
    with pytest.raises(UserError, match="found head pooled, attention scaled and 4 heads"):
        write_published(tmp_path, tmp_path / "out.bin")
    assert not (tmp_path / "out.bin").exists()


def test_a_loaded_model_trains(tmp_path: Path) -> None:
    ranker = load_ranker(write(checkpoint(), tmp_path), TOKENS, FRAMES).train()
    ranker(torch.randn(2, 4, TOKENS, WIDTH), torch.randn(2, FRAMES, WIDTH)).sum().backward()
    assert all(parameter.grad is not None for parameter in ranker.parameters() if parameter.requires_grad)
    save_model(tmp_path / "again", ranker)
    assert load_model(tmp_path / "again").encoder.config == ranker.encoder.config
