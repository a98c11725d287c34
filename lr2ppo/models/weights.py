"""Weights on disk: a folder with `model.safetensors` and `config.json`, enough to build the model again."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from lr2ppo.config.schema import ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.files import WEIGHTS_FILE, model_files, read_json, require_own, write_json
from lr2ppo.models.rankers import PartialOrderModel, RelevanceRanker
from lr2ppo.tensors import check_tensors, read_tensors, write_tensors

Model = RelevanceRanker | PartialOrderModel
KINDS: dict[str, type[RelevanceRanker] | type[PartialOrderModel]] = {
    "RelevanceRanker": RelevanceRanker,
    "PartialOrderModel": PartialOrderModel,
}
M = TypeVar("M", bound=RelevanceRanker | PartialOrderModel)


def new_model(kind: type[M], config: ModelConfig) -> M:
    """Build a model with random weights; raise `UserError` if this machine's memory cannot hold them."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        # Of 32-bit numbers.
        found = 4 * sum(shape.numel() for shape in model_shapes(kind, config).values())
    except (RuntimeError, TypeError, ValueError, OverflowError):
        # More numbers than torch can count.
        found = 2**63
    if found > memory:
        sizes = "model.width" if config.head == "pooled" else "model.width or model.text_tokens"
        raise UserError(
            f"model.width: found {config.width}, whose weights take {found / 2**30:,.1f} GiB, wanted at most "
            f"{memory / 2**30:,.1f} GiB, this machine's memory; lower {sizes}"
        )
    return kind(config)


def save_model(folder: Path, model: Model, tensors: Mapping[str, Tensor] | None = None) -> None:
    """Write the model's weights and config, each atomically.

    `tensors` replaces the weights of a model that is sharded over processes.
    """
    kind = next(name for name, kind in KINDS.items() if isinstance(model, kind))
    description = {"model": kind, "shape": model.encoder.config.model_dump(mode="json")}
    write_tensors(folder / WEIGHTS_FILE, model.state_dict() if tensors is None else tensors)
    write_json(folder / "config.json", description)


def load_model(folder: Path, dropout: float | None = None) -> Model:
    """Load the model in a folder, with another dropout if one is given.

    Raises `UserError` if `save_model` did not write the folder.
    """
    kind, config = describe_model(folder)
    if dropout is not None:
        config = config.model_copy(update={"dropout": dropout})
    return build_model(kind, config, read_tensors(folder / WEIGHTS_FILE), folder / WEIGHTS_FILE)


def describe_model(folder: Path) -> tuple[type[RelevanceRanker] | type[PartialOrderModel], ModelConfig]:
    """The kind and shape of the model in a folder, without its weights; raises `UserError` as `load_model` does."""
    for name in ("config.json", WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise UserError(f"{folder}: found no {name}; is it a run's best/?")
    require_own(model_files(folder))
    try:
        description = read_json(folder / "config.json")
        return KINDS[description["model"]], ModelConfig.model_validate(description["shape"])
    except (ValidationError, KeyError, TypeError, ValueError, OSError, RecursionError) as error:
        raise UserError(f"{folder / 'config.json'}: does not describe a model: {error}") from None


def load_kind(folder: Path, kind: type[M], dropout: float | None = None) -> M:
    """Load a model of one kind; raise `UserError` if the folder holds the other kind."""
    model = load_model(folder, dropout)
    if not isinstance(model, kind):
        raise UserError(
            f"{folder}: found a {type(model).__name__}, wanted a {kind.__name__}; name a run of the right stage"
        )
    return model


def build_model(kind: type[M], config: ModelConfig, tensors: Mapping[str, Tensor], source: Path) -> M:
    """Build a model in eval mode from the given tensors, without initializing other weights first.

    Raises `UserError` naming `source`, the file of the tensors, and every tensor that does not fit.
    """
    try:
        wanted = model_shapes(kind, config)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{source}: no model can have this shape: {error}") from None
    check_tensors(wanted, tensors, source)
    with torch.device("meta"):
        model = kind(config)
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
    model.eval()
    return model


def model_shapes(kind: type[M], config: ModelConfig) -> dict[str, torch.Size]:
    """The shape of each tensor of a model, without allocating it."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in kind(config).state_dict().items()}
