"""Tiny random CLIP and SigLIP models in folders as they are downloaded."""

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

WORDS = ("boat", "car", "lamp", "a", "red", "photo", "of")
UNKNOWN = "<unk>"
SPECIAL = ("<s>", "<pad>", "</s>", UNKNOWN)
IMAGE = 32
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT: dict[str, Any] = SHAPE | {
    "max_position_embeddings": 12,
    "vocab_size": len(SPECIAL) + len(WORDS),
    "bos_token_id": 0,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = SHAPE | {"image_size": IMAGE, "patch_size": 8}


def write_zero_shot(folder: Path, kind: str) -> Path:
    """Write a model of a kind, clip or siglip, with its tokenizer and image processor."""
    torch.manual_seed(0)
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16))
    else:
        model = SiglipModel(SiglipConfig(text_config=TEXT | {"projection_size": 16}, vision_config=VISION))
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(SPECIAL + WORDS)}, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if kind == "clip" else "$A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    size = {"height": IMAGE, "width": IMAGE}
    preparation = {
        "image_processor_type": "CLIPImageProcessor" if kind == "clip" else "SiglipImageProcessor",
        "size": {"shortest_edge": IMAGE} if kind == "clip" else size,
        "do_center_crop": kind == "clip",
        "crop_size": size,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "resample": 3,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preparation), encoding="utf-8")
    return folder
