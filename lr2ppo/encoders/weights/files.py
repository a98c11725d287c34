"""Encoder weights on disk: the file of a folder that holds them, and what a config.json beside it tells."""

import json
from pathlib import Path
from typing import Any

from lr2ppo.encoders.weights.layouts import WANTED, Encoder, Weights, recognise
from lr2ppo.errors import UserError
from lr2ppo.tensors import read_tensors

# A folder may hold the same weights in several formats: the first of these is taken.
USUAL_FILES = ("model.safetensors", "pytorch_model.bin")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
MODEL_TYPES: dict[Encoder, str] = {"text": "roberta", "image": "vit"}


def read_weights(path: Path, encoder: Encoder) -> Weights:
    """The recognised tensors of a file, or of the one weights file of a folder; raises `UserError` without one."""
    source = _find_weights(path, encoder) if path.is_dir() else path
    return recognise(read_tensors(source), source, encoder)


def _find_weights(folder: Path, encoder: Encoder) -> Path:
    files = sorted(file.name for file in folder.iterdir())
    weights = [name for name in USUAL_FILES if name in files][:1] or [
        name for name in files if name.endswith(WEIGHT_SUFFIXES)
    ]
    if len(weights) > 1:
        raise UserError(f"{folder}: found {', '.join(weights)}; name the one file that holds {WANTED[encoder]}")
    if not weights:
        raise UserError(f"{folder}: found {', '.join(files) or 'nothing'}, wanted {WANTED[encoder]}")
    return folder / weights[0]


def read_config(weights: Weights) -> dict[str, Any]:
    """What the config.json beside the weights tells of them: {} where there is none, or another encoder's.

    Raises `UserError` where it is not JSON, or where Hugging Face weights stand beside another model's config.
    """
    path = weights.source.parent / "config.json"
    if not path.is_file():
        return {}
    config, wanted = read_json(path), MODEL_TYPES[weights.layout.encoder]
    found = config.get("model_type", wanted)
    if found != wanted and weights.layout.is_hugging_face:
        raise UserError(f"{path}: found model_type {found!r}, wanted {wanted!r}")
    return config if found == wanted else {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file; raises `UserError` where it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: is not readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found a {type(content).__name__}, wanted a JSON object")
    return content


def count_heads(width: int, config: dict[str, Any], source: Path) -> int:
    """The number of attention heads, which no tensor tells.

    It is what a config.json beside the weights calls `num_attention_heads` or (TencentPretrain) `heads_num`; without
    one, width // 64 where the width is at least 128, else 4. Raises `UserError` where it does not divide the width.
    """
    by_rule = width // 64 if width >= 128 else 4
    heads = config.get("num_attention_heads", config.get("heads_num", by_rule))
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(
            f"{source}: found {heads!r} attention heads for width {width}, wanted a divisor of it; "
            'tell the right number in a config.json beside it: {"num_attention_heads": ...}'
        )
    return heads


def norm_eps(weights: Weights, config: dict[str, Any]) -> float:
    """What layer norms add to the variance: the config's `layer_norm_eps`, else what the layout is known for."""
    eps = config.get("layer_norm_eps", weights.layout.norm_eps)
    if not isinstance(eps, int | float) or eps <= 0:
        raise UserError(
            f"{weights.source.parent / 'config.json'}: found layer_norm_eps {eps!r}, wanted a number above 0"
        )
    return float(eps)
