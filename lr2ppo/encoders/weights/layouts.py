"""The supported layouts of encoder weights, detected from tensor names, which are mapped to the model's names.

Text runs in transformers' `RobertaModel` and images in timm's `VisionTransformer`: their names are the model's names
here, except timm's `attn.qkv`, which other layouts hold in three parts, `attn.q`, `attn.k` and `attn.v`.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mode
from typing import Literal

import torch
from torch import Tensor

from lr2ppo.errors import UserError, raise_faults
from lr2ppo.tensors import check_tensors

Encoder = Literal["text", "image"]
ENCODER_TITLES: dict[Encoder, str] = {"text": "RoBERTa text encoder", "image": "ViT image encoder"}
WANTED: dict[Encoder, str] = {
    "text": "a RoBERTa: a Hugging Face folder (config.json and weights) or TencentPretrain's roberta_base_en_model.bin",
    "image": "a ViT: a timm or Hugging Face folder (config.json and weights) or weights file, "
    "or TencentPretrain's vit_base_patch16_224_model.bin",
}
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Layout:
    """One program's names for an encoder's tensors, mapped to the model's.

    `layers` is the prefix of layer names, before the layer's number, here and in the model; `each` names the tensors of
    one layer, `whole` all others. Tensors whose names start with one of `ignored` belong to heads. `prefix` comes
    before every name if the encoder is part of a larger model. `norm_eps` is the layer norms' epsilon without a config.
    """

    encoder: Encoder
    layers: tuple[str, str]
    whole: Mapping[str, str]
    each: Mapping[str, str]
    ignored: tuple[str, ...]
    norm_eps: float
    prefix: str = ""
    is_hugging_face: bool = False

    def names(self, found: Collection[str]) -> dict[str, str]:
        """Map all names of an encoder with as many layers as found to the model's names; {} without layers."""
        prefix = self.prefix if any(name.startswith(self.prefix) for name in found) else ""
        theirs, ours = self.layers
        numbered = re.compile(rf"{re.escape(prefix + theirs)}\.(\d+)\.")
        depth = len({match[1] for name in found if (match := numbered.match(name))})
        names = {f"{prefix}{name}": target for name, target in self.whole.items()} if depth else {}
        for n in range(depth):
            names |= {f"{prefix}{theirs}.{n}.{name}": f"{ours}.{n}.{target}" for name, target in self.each.items()}
        return names

    def ignores(self, name: str) -> bool:
        return name.removeprefix(self.prefix).startswith(self.ignored)


def _parameters(modules: Mapping[str, str]) -> dict[str, str]:
    """Map the weight and bias of each module; TencentPretrain's layer norms call them gamma and beta."""
    names: dict[str, str] = {}
    for theirs, ours in modules.items():
        weight, bias = ("gamma", "beta") if "layer_norm" in theirs else ("weight", "bias")
        names |= {f"{theirs}.{weight}": f"{ours}.weight", f"{theirs}.{bias}": f"{ours}.bias"}
    return names


TENCENT_ROBERTA = Layout(
    encoder="text",
    layers=("encoder.transformer", "encoder.layer"),
    whole={
        "embedding.word.embedding.weight": "embeddings.word_embeddings.weight",
        "embedding.pos.embedding.weight": "embeddings.position_embeddings.weight",
        "embedding.seg.embedding.weight": "embeddings.token_type_embeddings.weight",
    }
    | _parameters({"embedding.layer_norm": "embeddings.LayerNorm"}),
    each=_parameters(
        {
            "self_attn.linear_layers.0": "attention.self.query",
            "self_attn.linear_layers.1": "attention.self.key",
            "self_attn.linear_layers.2": "attention.self.value",
            "self_attn.final_linear": "attention.output.dense",
            "layer_norm_1": "attention.output.LayerNorm",
            "feed_forward.linear_1": "intermediate.dense",
            "feed_forward.linear_2": "output.dense",
            "layer_norm_2": "output.LayerNorm",
        }
    ),
    ignored=("target.",),
    norm_eps=1e-12,
)
HF_ROBERTA = Layout(
    encoder="text",
    layers=("encoder.layer", "encoder.layer"),
    whole={name: name for name in TENCENT_ROBERTA.whole.values()},
    each={name: name for name in TENCENT_ROBERTA.each.values()},
    ignored=("lm_head.", "pooler.", "classifier.", "embeddings.position_ids", "embeddings.token_type_ids"),
    norm_eps=1e-12,
    prefix="roberta.",
    is_hugging_face=True,
)
TENCENT_VIT = Layout(
    encoder="image",
    layers=("encoder.transformer", "blocks"),
    whole={"embedding.patch.cls_emb": "cls_token", "embedding.pos.embedding.weight": "pos_embed"}
    | _parameters({"embedding.patch.projection": "patch_embed.proj", "encoder.layer_norm": "norm"}),
    each=_parameters(
        {
            "self_attn.linear_layers.0": "attn.q",
            "self_attn.linear_layers.1": "attn.k",
            "self_attn.linear_layers.2": "attn.v",
            "self_attn.final_linear": "attn.proj",
            "layer_norm_1": "norm1",
            "feed_forward.linear_1": "mlp.fc1",
            "feed_forward.linear_2": "mlp.fc2",
            "layer_norm_2": "norm2",
        }
    ),
    ignored=("target.",),
    norm_eps=1e-6,
)
HF_VIT = Layout(
    encoder="image",
    layers=("encoder.layer", "blocks"),
    whole={"embeddings.cls_token": "cls_token", "embeddings.position_embeddings": "pos_embed"}
    | _parameters({"embeddings.patch_embeddings.projection": "patch_embed.proj", "layernorm": "norm"}),
    each=_parameters(
        {
            "attention.attention.query": "attn.q",
            "attention.attention.key": "attn.k",
            "attention.attention.value": "attn.v",
            "attention.output.dense": "attn.proj",
            "layernorm_before": "norm1",
            "intermediate.dense": "mlp.fc1",
            "output.dense": "mlp.fc2",
            "layernorm_after": "norm2",
        }
    ),
    ignored=("classifier.", "pooler."),
    norm_eps=1e-12,
    prefix="vit.",
    is_hugging_face=True,
)
# The names of transformers 5 in memory; its files keep the names above.
HF_VIT_5 = Layout(
    encoder="image",
    layers=("layers", "blocks"),
    whole=HF_VIT.whole,
    each=_parameters(
        {
            "attention.q_proj": "attn.q",
            "attention.k_proj": "attn.k",
            "attention.v_proj": "attn.v",
            "attention.o_proj": "attn.proj",
            "layernorm_before": "norm1",
            "mlp.fc1": "mlp.fc1",
            "mlp.fc2": "mlp.fc2",
            "layernorm_after": "norm2",
        }
    ),
    ignored=HF_VIT.ignored,
    norm_eps=HF_VIT.norm_eps,
    prefix=HF_VIT.prefix,
    is_hugging_face=True,
)
TIMM_VIT = Layout(
    encoder="image",
    layers=("blocks", "blocks"),
    whole={name: name for name in TENCENT_VIT.whole.values()},
    each=_parameters({name: name for name in ("attn.qkv", "attn.proj", "norm1", "mlp.fc1", "mlp.fc2", "norm2")}),
    ignored=("head.",),
    norm_eps=1e-6,
)
LAYOUTS = (HF_ROBERTA, TENCENT_ROBERTA, TIMM_VIT, HF_VIT, HF_VIT_5, TENCENT_VIT)


@dataclass(frozen=True)
class Weights:
    """An encoder's tensors as in its file, by their names there; `names` maps these to the model's."""

    source: Path
    layout: Layout
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str]

    def renamed(self) -> dict[str, Tensor]:
        """The tensors by the model's names for them."""
        return {ours: self.tensors[name] for name, ours in self.names.items() if name in self.tensors}

    def require(self, axes: Mapping[str, int]) -> None:
        """Raise `UserError` if one of the tensors (the model's names) is missing or has another number of axes."""
        faults = []
        for name, ours in self.names.items():
            if ours in axes and name not in self.tensors:
                faults.append(f"{name}: is missing")
            elif ours in axes and self.tensors[name].ndim != axes[ours]:
                faults.append(f"{name}: found shape {list(self.tensors[name].shape)}, wanted {axes[ours]} axes")
        raise_faults(self.source, faults, "is it the right file, and complete?")

    def checked(self, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        """The tensors as float32, by the model's names.

        Raises `UserError`, before it takes memory for them, naming each that is missing, unknown or of another shape.
        """
        wanted = {name: shapes[ours] for name, ours in self.names.items() if ours in shapes}
        check_tensors(wanted, self.tensors, self.source)
        return {name: tensor.float() for name, tensor in self.renamed().items()}

    def width(self) -> int:
        """The most common width of the tensors, so that a misshapen one is reported rather than used."""
        return mode(tensor.shape[-1] for tensor in self.renamed().values() if tensor.ndim)

    def hidden_width(self, expansion: str) -> int:
        """The hidden width of the feed-forward nets: the most common of `expansion` over layers, else 4 widths."""
        found = [tensor for name, tensor in self.renamed().items() if f".{expansion}." in name]
        return mode([tensor.shape[0] for tensor in found if tensor.ndim] or [4 * self.width()])

    def depth(self) -> int:
        layer = f"{self.layout.layers[1]}."
        return len({ours.removeprefix(layer).split(".")[0] for ours in self.names.values() if ours.startswith(layer)})


def match_layout(tensors: Mapping[str, Tensor], source: Path, encoder: Encoder) -> Weights:
    """Detect the layout from the tensors' names: the one with the most names found, and more than half.

    Raises `UserError` if no layout matches, or if it is the other encoder's.
    """
    tables = [(layout, layout.names(tensors)) for layout in LAYOUTS]
    layout, names = max(tables, key=lambda table: len(table[1].keys() & tensors.keys()))
    if 2 * len(names.keys() & tensors.keys()) <= len(names):
        shown = ", ".join(list(tensors)[:NAMES_SHOWN]) + " and more" * (len(tensors) > NAMES_SHOWN)
        raise UserError(
            f"{source}: holds no encoder in a supported layout (its tensors: {shown}); wanted {WANTED[encoder]}"
        )
    if layout.encoder != encoder:
        raise UserError(f"{source}: holds a {ENCODER_TITLES[layout.encoder]}, wanted {WANTED[encoder]}")
    kept = {name: tensor for name, tensor in tensors.items() if not layout.ignores(name)}
    return Weights(source, layout, kept, names)
