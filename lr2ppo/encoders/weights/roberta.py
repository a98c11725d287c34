"""RoBERTa from any layout of its weights, in transformers' `RobertaModel`."""

from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import RobertaConfig, RobertaModel
from transformers.utils import logging as transformers_logging

from lr2ppo.encoders.weights.files import count_heads, norm_eps, read_config, read_weights
from lr2ppo.encoders.weights.layouts import WANTED, Weights
from lr2ppo.errors import UserError

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
SEGMENTS = "embeddings.token_type_embeddings.weight"
# RoBERTa numbers positions from 2 on; TencentPretrain leaves out the rows before.
UNUSED_POSITIONS = 2


def load_roberta(path: Path) -> RobertaModel:
    """A RoBERTa without pooler of float32; raises `UserError` where its tensors or its config do not fit."""
    weights = read_weights(path, "text")
    model = _build(weights)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    tensors = weights.renamed()
    if weights.layout.is_hugging_face:
        weights.check(shapes)
    else:
        positions, width = shapes[POSITIONS]
        shapes[POSITIONS] = torch.Size([positions - UNUSED_POSITIONS, width])
        shapes[SEGMENTS] = torch.Size([max(1, len(tensors[SEGMENTS])), width])
        weights.check(shapes)
        tensors[POSITIONS] = pad(tensors[POSITIONS], (0, 0, UNUSED_POSITIONS, 0))
        # RoBERTa has one token type, which TencentPretrain keeps behind rows of its own.
        tensors[SEGMENTS] = tensors[SEGMENTS][-1:]
    transformers_logging.disable_progress_bar()
    return RobertaModel.from_pretrained(None, config=model.config, state_dict=tensors, add_pooling_layer=False)


def _build(weights: Weights) -> RobertaModel:
    """The model of shapes without values that the weights' config, or else their own shapes, tell."""
    given = read_config(weights)
    if not weights.layout.is_hugging_face:
        arguments = _read_off(weights, given)
    elif given:
        # Features are computed in float32, whatever the config tells.
        arguments = {name: value for name, value in given.items() if name not in ("dtype", "torch_dtype")}
    else:
        raise UserError(f"{weights.source}: found no config.json beside it, wanted {WANTED['text']}")
    try:
        with torch.device("meta"):
            return RobertaModel(RobertaConfig.from_dict(arguments), add_pooling_layer=False)
    except Exception as error:
        # transformers refuses a config in a dozen ways, which all mean the same to a user.
        raise UserError(f"{weights.source.parent / 'config.json'}: does not describe a RoBERTa: {error}") from None


def _read_off(weights: Weights, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a config that the tensors tell, and the config beside them where it is given."""
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
