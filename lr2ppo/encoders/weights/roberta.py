"""Load RoBERTa weights in any layout into transformers' `RobertaModel`."""

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import RobertaConfig, RobertaModel
from transformers.utils import logging as transformers_logging

from lr2ppo.encoders.weights.files import count_heads, norm_eps, read_config, read_weights
from lr2ppo.encoders.weights.layouts import WANTED, Weights
from lr2ppo.errors import UserError, show

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
SEGMENTS = "embeddings.token_type_embeddings.weight"
# RoBERTa numbers positions from 2; TencentPretrain leaves out the rows before.
UNUSED_POSITIONS = 2
# What is read of a Hugging Face config: all else is for training, or is refused unless it has this value.
ARGUMENTS = (
    *("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("max_position_embeddings", "type_vocab_size"),
)
ENCODER_ONLY = {
    "is_decoder": False,
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "pad_token_id": 1,
}


def load_roberta(path: Path) -> RobertaModel:
    """Load a RoBERTa without pooler, in float32; raises `UserError` if its tensors or its config do not fit."""
    weights = read_weights(path, "text")
    model = _build(weights)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if weights.layout.is_hugging_face:
        tensors = weights.checked(shapes)
    else:
        positions, width = shapes[POSITIONS]
        shapes[POSITIONS] = torch.Size([positions - UNUSED_POSITIONS, width])
        shapes[SEGMENTS] = torch.Size([max(1, len(weights.renamed()[SEGMENTS])), width])
        tensors = weights.checked(shapes)
        tensors[POSITIONS] = pad(tensors[POSITIONS], (0, 0, UNUSED_POSITIONS, 0))
        # RoBERTa has one token type, the last row in TencentPretrain's files.
        tensors[SEGMENTS] = tensors[SEGMENTS][-1:]
    transformers_logging.disable_progress_bar()
    return RobertaModel.from_pretrained(None, config=model.config, state_dict=tensors, add_pooling_layer=False)


def _build(weights: Weights) -> RobertaModel:
    """Build the model on the meta device, as described by the weights' config or by their shapes."""
    given = read_config(weights)
    if not weights.layout.is_hugging_face:
        arguments = _config_from(weights, given)
    elif given:
        arguments = _read_arguments(weights, given)
    else:
        raise UserError(f"{weights.source}: found no config.json beside it, wanted {WANTED['text']}")
    try:
        with torch.device("meta"):
            return RobertaModel(RobertaConfig.from_dict(arguments), add_pooling_layer=False)
    except Exception as error:
        # transformers raises many types for a bad config, which mean the same to a user.
        raise UserError(f"{weights.source.parent / 'config.json'}: does not describe a RoBERTa: {error}") from None


def _read_arguments(weights: Weights, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a Hugging Face config that describe the encoder; raises `UserError` if they cannot be used."""
    place, depth = weights.source.parent / "config.json", weights.depth()
    # A model of many layers would take all time and memory before its tensors are compared.
    if given.get("num_hidden_layers") not in (None, depth):
        raise UserError(
            f"{place}: found num_hidden_layers {show(given['num_hidden_layers'])}, its weights have {depth}"
        )
    for key, wanted in ENCODER_ONLY.items():
        if given.get(key) not in (None, wanted):
            raise UserError(f"{place}: found {key} {show(given[key])}, only {show(wanted)} is read")
    fixed = {"num_hidden_layers": depth, "layer_norm_eps": norm_eps(weights, given)}
    return {name: given[name] for name in ARGUMENTS if given.get(name) is not None} | fixed


def _config_from(weights: Weights, given: dict[str, Any]) -> dict[str, Any]:
    """The config's arguments, from the tensors' shapes and the config next to them, if any."""
    weights.require({WORDS: 2, POSITIONS: 2, SEGMENTS: 2})
    tensors, width = weights.renamed(), weights.width()
    return {
        "vocab_size": len(tensors[WORDS]),
        "hidden_size": width,
        "num_hidden_layers": weights.depth(),
        "num_attention_heads": count_heads(width, given, weights.source),
        "intermediate_size": weights.hidden_width("intermediate.dense"),
        "max_position_embeddings": len(tensors[POSITIONS]) + UNUSED_POSITIONS,
        "type_vocab_size": 1,
        "layer_norm_eps": norm_eps(weights, given),
    }
