"""Load ViT weights in any layout into timm's `VisionTransformer`."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from lr2ppo.encoders.weights.files import count_heads, norm_eps, read_config, read_weights
from lr2ppo.encoders.weights.layouts import TENCENT_VIT, TIMM_VIT, Weights
from lr2ppo.errors import UserError, show
from lr2ppo.files import read_json_object
from lr2ppo.tensors import check_tensors

# The model for files without a timm config: it sets the preprocessing and all but the sizes.
BASE_VIT = "vit_base_patch16_224"
# The arguments of a timm config that are read; they set sizes.
ARGUMENTS = {
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads"),
    *("mlp_ratio", "qkv_bias", "reg_tokens"),
}


def load_vit(path: Path) -> VisionTransformer:
    """Load a ViT without head, in float32; raises `UserError` if its tensors or its config do not fit."""
    weights = read_weights(path, "image")
    config = read_config(weights)
    if weights.layout is TIMM_VIT and "architecture" in config:
        _check_arguments(weights, config)
        model = _build(f"local-dir:{weights.source.parent}", weights.source)
        check_tensors({name: t.shape for name, t in model.state_dict().items()}, weights.tensors, weights.source)
        state = {name: tensor.float() for name, tensor in weights.tensors.items()}
    else:
        model = _build(BASE_VIT, weights.source, **_arguments_from(weights, config))
        state = _join_qkv(weights.checked(_shapes(model, weights)))
        state["pos_embed"] = state["pos_embed"].reshape(model.pos_embed.shape)
    model.load_state_dict(state, assign=True)
    return model


def _check_arguments(weights: Weights, config: dict[str, Any]) -> None:
    """Raise `UserError` if a timm config has arguments of other models, or another depth than its weights."""
    place, arguments = weights.source.parent / "config.json", config.get("model_args") or {}
    if not isinstance(arguments, dict) or (others := sorted(arguments.keys() - ARGUMENTS)):
        found = ", ".join(map(show, others)) if isinstance(arguments, dict) else show(arguments)
        raise UserError(f"{place}: found model_args {found}, only {', '.join(sorted(ARGUMENTS))} are read")
    # A model of many layers would take all time and memory before its tensors are compared.
    if (depth := arguments.get("depth", weights.depth())) != weights.depth():
        raise UserError(f"{place}: found depth {show(depth)}, its weights have {weights.depth()}")


def _build(name: str, source: Path, **arguments: Any) -> VisionTransformer:
    """Build timm's model on the meta device, from a name or a folder's config.json."""
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False, num_classes=0, **arguments)
    except Exception as error:
        # timm raises many types for bad names and arguments, which mean the same to a user.
        raise UserError(f"{source}: timm cannot build the ViT of this file or its config.json: {error}") from None
    if not isinstance(model, VisionTransformer):
        raise UserError(f"{source}: found {type(model).__name__}, wanted a vision transformer")
    return model


def _arguments_from(weights: Weights, config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of timm's model, from the tensors' shapes and the config next to them, if any."""
    weights.require({"pos_embed": 2 if weights.layout is TENCENT_VIT else 3, "patch_embed.proj.weight": 4})
    tensors, width = weights.renamed(), weights.width()
    tokens, patch = tensors["pos_embed"].shape[-2], tensors["patch_embed.proj.weight"].shape[-1]
    rows = math.isqrt(max(tokens - 1, 0))
    if tokens != 1 + rows**2 or not rows:
        raise UserError(f"{weights.source}: found {tokens} positions, wanted one and those of a square of patches")
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{weights.source}: found activation {config['hidden_act']!r}, only 'gelu' is read")
    size = rows * patch
    return {
        "img_size": size,
        "patch_size": patch,
        "embed_dim": width,
        "depth": weights.depth(),
        "num_heads": count_heads(width, config, weights.source),
        # The model rounds the product of width and ratio down.
        "mlp_ratio": (weights.hidden_width("mlp.fc1") + 0.5) / width,
        "qkv_bias": bool(config.get("qkv_bias", True)),
        "norm_layer": partial(nn.LayerNorm, eps=norm_eps(weights, config)),
        "pretrained_cfg_overlay": {"input_size": (3, size, size)} | _statistics(weights),
    }


def _statistics(weights: Weights) -> dict[str, Any]:
    """The mean and deviation of pixels in a Hugging Face folder's preprocessor config, by timm's names.

    Raises `UserError` if they are not three numbers each.
    """
    path = weights.source.parent / "preprocessor_config.json"
    if not (weights.layout.is_hugging_face and path.is_file()):
        return {}
    content, statistics = read_json_object(path), {}
    for key in ("mean", "std"):
        values = content.get(f"image_{key}")
        if isinstance(values, list) and len(values) == 3 and all(isinstance(value, int | float) for value in values):
            statistics[key] = tuple(values)
        elif values is not None:
            raise UserError(f"{path}: found image_{key} {values!r}, wanted three numbers")
    return statistics


def _shapes(model: VisionTransformer, weights: Weights) -> dict[str, torch.Size]:
    """The expected shapes of the file's tensors, by the model's names and those of the three parts of `attn.qkv`."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    for name, shape in list(shapes.items()):
        if ".attn.qkv." in name:
            shapes |= {name.replace(".qkv.", f".{part}."): torch.Size([shape[0] // 3, *shape[1:]]) for part in "qkv"}
    if weights.layout is TENCENT_VIT:
        shapes["pos_embed"] = shapes["pos_embed"][1:]
    return shapes


def _join_qkv(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Join the three parts of each layer's `attn.qkv` into one tensor."""
    joined: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".attn.q." in name:
            parts = [tensors[name.replace(".q.", f".{part}.")] for part in "qkv"]
            joined[name.replace(".q.", ".qkv.")] = torch.cat(parts)
        elif ".attn.k." not in name and ".attn.v." not in name:
            joined[name] = tensor
    return joined
