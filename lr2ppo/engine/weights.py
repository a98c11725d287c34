"""Weights on disk: a folder with `model.safetensors` and `config.json`, enough to build the model again."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from lr2ppo.config import ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.models import PartialOrderModel, RelevanceRanker

Model = RelevanceRanker | PartialOrderModel
KINDS: dict[str, type[RelevanceRanker] | type[PartialOrderModel]] = {
    "RelevanceRanker": RelevanceRanker,
    "PartialOrderModel": PartialOrderModel,
}
M = TypeVar("M", RelevanceRanker, PartialOrderModel)


def save_model(folder: Path, model: Model) -> None:
    """Write the model's weights and config; each file is complete before it takes its name."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    description = {"model": type(model).__name__, "shape": model.encoder.config.model_dump(mode="json")}
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=".model-")
    os.close(handle)
    try:
        save_file(tensors, temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, folder / "model.safetensors")
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    write_json(folder / "config.json", description)


def load_model(folder: Path, dropout: float | None = None) -> Model:
    """Build the model a folder holds, with another dropout where one is given.

    Raises `UserError` where the folder is not one `save_model` wrote.
    """
    try:
        description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = ModelConfig.model_validate(description["shape"])
        if dropout is not None:
            config = config.model_copy(update={"dropout": dropout})
        model = KINDS[description["model"]](config)
        tensors = load_file(folder / "model.safetensors")
    except FileNotFoundError as error:
        raise UserError(
            f"{folder}: found no {Path(error.filename or 'model.safetensors').name}; is it a run's best/?"
        ) from None
    except (ValidationError, json.JSONDecodeError, KeyError, TypeError, ValueError, SafetensorError, OSError) as error:
        raise UserError(f"{folder}: does not hold a model of ours: {error}") from None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise UserError(f"{folder}: the weights do not fit their config.json: {error}") from None
    return model


def load_kind(folder: Path, kind: type[M], dropout: float | None = None) -> M:
    """`load_model`, refused where the folder holds the other kind of model."""
    model = load_model(folder, dropout)
    if not isinstance(model, kind):
        raise UserError(
            f"{folder}: found a {type(model).__name__}, wanted a {kind.__name__}; name a run of the right stage"
        )
    return model


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is complete before it takes its name."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)
