"""Encoder weights on disk: find the weights file of a folder, and read the config.json next to it."""

from pathlib import Path
from typing import Any

from lr2ppo.encoders.weights.layouts import WANTED, Encoder, Weights, match_layout
from lr2ppo.errors import UserError, show
from lr2ppo.files import read_json_object
from lr2ppo.tensors import read_tensors

# A folder may hold the same weights in several formats: the first of these is taken.
USUAL_FILES = ("model.safetensors", "pytorch_model.bin")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
MODEL_TYPES: dict[Encoder, str] = {"text": "roberta", "image": "vit"}


def read_weights(path: Path, encoder: Encoder) -> Weights:
    """Read and match the tensors of a file, or of a folder's only weights file; raises `UserError` without one."""
    source = _find_weights(path, encoder) if path.is_dir() else path
    return match_layout(read_tensors(source), source, encoder)


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
    """Read the config.json next to the weights: {} if there is none, or if it is another encoder's.

    Raises `UserError` if it is not JSON, or if Hugging Face weights have another model's config.
    """
    path = weights.source.parent / "config.json"
    if not path.is_file():
        return {}
    config, wanted = read_json_object(path), MODEL_TYPES[weights.layout.encoder]
    found = config.get("model_type", wanted)
    if found != wanted and weights.layout.is_hugging_face:
        raise UserError(f"{path}: found model_type {show(found)}, wanted {wanted!r}")
    return config if found == wanted else {}


def count_heads(width: int, config: dict[str, Any], source: Path) -> int:
    """The number of attention heads, which the tensors do not determine.

    It is `num_attention_heads` or (TencentPretrain) `heads_num` of a config.json next to the weights; without one,
    width // 64 if the width is at least 128, else 4. Raises `UserError` if it does not divide the width.
    """
    by_rule = width // 64 if width >= 128 else 4
    heads = config.get("num_attention_heads", config.get("heads_num", by_rule))
    if not isinstance(heads, int) or heads < 1 or width % heads:
        raise UserError(
            f"{source}: found {show(heads)} attention heads for width {width}, wanted a divisor of it; "
            'set the right number in a config.json beside it: {"num_attention_heads": ...}'
        )
    return heads


def norm_eps(weights: Weights, config: dict[str, Any]) -> float:
    """The epsilon of layer norms: the config's `layer_norm_eps`, else the layout's default.

    Raises `UserError` if it is not a number above 0.
    """
    eps = config.get("layer_norm_eps", weights.layout.norm_eps)
    if not isinstance(eps, int | float) or eps <= 0:
        raise UserError(
            f"{weights.source.parent / 'config.json'}: found layer_norm_eps {show(eps)}, wanted a number above 0"
        )
    return float(eps)
