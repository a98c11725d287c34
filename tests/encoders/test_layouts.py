"""Encoder weights in every layout: detected from their content, equal features, and bad tensors named."""

import json
import re
import resource
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import VisionTransformer
from torch import Tensor, nn
from transformers import (
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    RobertaTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)
from transformers.utils import logging as transformers_logging

from lr2ppo.cli import main
from lr2ppo.encoders import ImageEncoder, TextEncoder, pretrain
from lr2ppo.encoders.weights.files import count_heads
from lr2ppo.errors import UserError
from lr2ppo.ops.linear import use_fast_linear
from lr2ppo.tensors import fingerprint
from tests.helpers.fuzz import run_apart
from tests.helpers.golden import GOLDEN

# width, layers, heads, hidden width: the heads follow the default rule; 88 * (60 / 88) is below 60 in floats.
SHAPES = [(64, 3, 4, 100), (128, 1, 2, 512), (192, 2, 3, 768), (88, 2, 4, 60)]
TEXT_BASE, IMAGE_BASE = (768, 12, 12, 3072, 50265, 514), (768, 12, 12, 3072, 16, 224)
USUAL = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"}
TIGHT: dict[str, Any] = {"rtol": 0, "atol": 1e-5}
# Map the modules of a layer of ours and timm's, and those outside layers, to TencentPretrain's.
BLOCK = {
    "attention.self.query": "self_attn.linear_layers.0",
    "attention.self.key": "self_attn.linear_layers.1",
    "attention.self.value": "self_attn.linear_layers.2",
    "attention.output.dense": "self_attn.final_linear",
    "attention.output.LayerNorm": "layer_norm_1",
    "intermediate.dense": "feed_forward.linear_1",
    "output.LayerNorm": "layer_norm_2",
    "output.dense": "feed_forward.linear_2",
    "attn.q": "self_attn.linear_layers.0",
    "attn.k": "self_attn.linear_layers.1",
    "attn.v": "self_attn.linear_layers.2",
    "attn.proj": "self_attn.final_linear",
    "norm1": "layer_norm_1",
    "norm2": "layer_norm_2",
    "mlp.fc1": "feed_forward.linear_1",
    "mlp.fc2": "feed_forward.linear_2",
}
OUTSIDE = {
    "embeddings.word_embeddings": "embedding.word.embedding",
    "embeddings.LayerNorm": "embedding.layer_norm",
    "patch_embed.proj": "embedding.patch.projection",
    "norm": "encoder.layer_norm",
}
transformers_logging.disable_progress_bar()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def roberta(width: int, layers: int, heads: int, hidden: int, vocabulary: int, positions: int) -> RobertaModel:
    """A RoBERTa with random weights, biases and norms, and layer norm epsilon 1e-12."""
    config = RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=hidden,
        max_position_embeddings=positions,
        type_vocab_size=1,
        layer_norm_eps=1e-12,
    )
    return _drawn(RobertaModel(config, add_pooling_layer=False))


def timm_vit(width: int, layers: int, heads: int, hidden: int, patch: int, size: int) -> VisionTransformer:
    """timm's ViT with random weights, biases and norms, and layer norm epsilon 1e-6."""
    with torch.device("meta"):
        model = timm.create_model(
            "vit_base_patch16_224",
            num_classes=0,
            embed_dim=width,
            depth=layers,
            num_heads=heads,
            mlp_ratio=(hidden + 0.5) / width,
            patch_size=patch,
            img_size=size,
        )
    return _drawn(model.to_empty(device="cpu"))


def hf_vit(width: int, layers: int, heads: int, hidden: int, patch: int, size: int, **more: float) -> ViTModel:
    """transformers' ViT with random weights, biases and norms."""
    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=hidden,
        patch_size=patch,
        image_size=size,
        **more,
    )
    return _drawn(ViTModel(config))


def _drawn(model: nn.Module) -> nn.Module:
    # New biases are 0 and new norms 1, so swapping them would change nothing.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if re.search(r"norm\d?\w*\.weight$", name, re.IGNORECASE) else 0.0
            parameter.normal_(around, 0.1)
    return model.eval()


def tencent_roberta(model: RobertaModel) -> dict[str, Tensor]:
    """TencentPretrain's file of a RoBERTa: no unused positions, extra rows before the token type, a head."""
    state = dict(model.state_dict())
    positions = state.pop("embeddings.position_embeddings.weight")[2:]
    token_type = state.pop("embeddings.token_type_embeddings.weight")
    width = positions.shape[1]
    return dict(_tencent_names(state.items())) | {
        "embedding.pos.embedding.weight": torch.cat([positions, torch.zeros(2, width)]),
        "embedding.seg.embedding.weight": torch.cat([torch.randn(2, width), token_type]),
        "target.mlm.linear_1.weight": torch.randn(width, width),
    }


def tencent_vit(model: VisionTransformer) -> dict[str, Tensor]:
    """TencentPretrain's file of a ViT."""
    state = dict(model.state_dict())
    positions, class_token = state.pop("pos_embed"), state.pop("cls_token")
    parts = [
        (name.replace("qkv", part), rows)
        for name, tensor in state.items()
        for part, rows in (zip("qkv", tensor.chunk(3), strict=True) if "qkv" in name else [("qkv", tensor)])
    ]
    return dict(_tencent_names(parts)) | {
        "embedding.pos.embedding.weight": positions[0].clone(),
        "embedding.patch.cls_emb": class_token,
    }


def _tencent_names(tensors: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    for name, tensor in tensors:
        module, _, kind = name.rpartition(".")
        if layer := re.fullmatch(r"(?:encoder\.layer|blocks)\.(\d+)\.(.+)", module):
            module = f"encoder.transformer.{layer[1]}.{BLOCK[layer[2]]}"
        else:
            module = OUTSIDE[module]
        kinds = {"weight": "gamma", "bias": "beta"} if "layer_norm" in module else {}
        yield f"{module}.{kinds.get(kind, kind)}", tensor.clone()


def tokens(vocabulary: int) -> tuple[Tensor, Tensor]:
    """Two rows of token ids, the second padded, and their mask."""
    ids = torch.randint(5, vocabulary, (2, 9))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return ids.masked_fill(mask == 0, 1), mask


@torch.inference_mode()
def text_features(encoder: TextEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    return encoder.encode_ids(ids, mask)[mask.bool()]


@torch.inference_mode()
def image_features(encoder: ImageEncoder, pixels: Tensor) -> Tensor:
    return encoder.encode_pixels(pixels)


@pytest.mark.parametrize("name", ["roberta_hf", "roberta_hf/model.safetensors", "roberta_tencentpretrain.bin"])
def test_published_text_features(name: str) -> None:
    wanted = load_file(GOLDEN / "encoders/features.safetensors")
    encoder = TextEncoder.load(GOLDEN / f"encoders/{name}")
    mask = wanted["attention_mask"]
    torch.testing.assert_close(
        text_features(encoder, wanted["input_ids"], mask), wanted["text_features"][mask.bool()], **TIGHT
    )


@pytest.mark.parametrize("name", ["vit_hf", "vit_hf/model.safetensors", "vit_tencentpretrain.bin"])
def test_published_image_features(name: str) -> None:
    wanted = load_file(GOLDEN / "encoders/features.safetensors")
    encoder = ImageEncoder.load(GOLDEN / f"encoders/{name}")
    torch.testing.assert_close(image_features(encoder, wanted["pixel_values"]), wanted["image_tokens"], **TIGHT)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [*((*shape, 90, 30) for shape in SHAPES), pytest.param(TEXT_BASE, id="base")])
def test_roberta_gives_the_same_in_both_layouts(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = roberta(*shape)
    model.save_pretrained(tmp_path / "hf")
    torch.save(tencent_roberta(model), tmp_path / "roberta.bin")
    ids, mask = tokens(vocabulary=shape[4])
    # For a tight comparison, both sides use the same matrix multiplication as the encoder.
    use_fast_linear(model)
    with torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    for path in (tmp_path / "hf", tmp_path / "roberta.bin"):
        torch.testing.assert_close(text_features(TextEncoder.load(path), ids, mask), wanted, **TIGHT)


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        (*SHAPES[0], 4, 20),
        (*SHAPES[1], 8, 24),
        (*SHAPES[2], 5, 15),
        (*SHAPES[3], 4, 8),
        pytest.param(IMAGE_BASE, id="base"),
    ],
)
def test_vit_gives_the_same_in_all_layouts(shape: tuple[int, ...], tmp_path: Path) -> None:
    model = timm_vit(*shape)
    size = shape[-1]
    (tmp_path / "tencent").mkdir()
    save_file(model.state_dict() | {"head.weight": torch.zeros(10, shape[0])}, tmp_path / "bare.safetensors")
    torch.save(tencent_vit(model), tmp_path / "tencent" / "vit.bin")
    pixels = torch.randn(1, 3, size, size)
    use_fast_linear(model)
    with torch.inference_mode():
        wanted = model.forward_features(pixels)
    for path in (tmp_path / "bare.safetensors", tmp_path / "tencent"):
        encoder = ImageEncoder.load(path)
        torch.testing.assert_close(image_features(encoder, pixels), wanted, **TIGHT)
        assert encoder.model.pretrained_cfg["input_size"] == (3, size, size)


def test_a_timm_folder_or_its_file_follows_its_config(tmp_path: Path) -> None:
    shape = {"embed_dim": 32, "depth": 2, "num_heads": 8, "patch_size": 4, "img_size": 12, "reg_tokens": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **shape).eval()
    model.pretrained_cfg |= {"input_size": (3, 12, 12), "mean": (0.1, 0.2, 0.3)}
    timm.models.save_for_hf(model, str(tmp_path), model_args=shape, safe_serialization="both")
    pixels = torch.randn(2, 3, 12, 12)
    with torch.inference_mode():
        wanted = model.forward_features(pixels)
    for path in (tmp_path, tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin"):
        encoder = ImageEncoder.load(path)
        torch.testing.assert_close(image_features(encoder, pixels), wanted, **TIGHT)
        torch.testing.assert_close(encoder.transform.transforms[-1].mean, torch.tensor([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("eps", [1e-2, 1e-12])
@pytest.mark.parametrize("names", ["of files", "in memory"])
def test_hugging_face_vit_of_this_release_of_transformers(names: str, eps: float, tmp_path: Path) -> None:
    model = hf_vit(64, 2, heads=8, hidden=100, patch=4, size=12, layer_norm_eps=eps, qkv_bias=eps < 1e-6)
    model.save_pretrained(tmp_path)
    if names == "in memory":
        (tmp_path / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    pixels = torch.randn(2, 3, 12, 12)
    with torch.inference_mode():
        wanted = model(pixels).last_hidden_state
    torch.testing.assert_close(image_features(ImageEncoder.load(tmp_path), pixels), wanted, **TIGHT)


def test_encoders_inside_models_with_heads_are_read(tmp_path: Path) -> None:
    vit = hf_vit(32, 2, heads=4, hidden=64, patch=4, size=12, layer_norm_eps=1e-12)
    classifier = ViTForImageClassification(vit.config)
    classifier.vit.load_state_dict(vit.state_dict(), strict=False)
    classifier.save_pretrained(tmp_path / "vit")
    # Without its config, a Hugging Face file is read with its layout's defaults.
    shutil.copy(tmp_path / "vit" / "model.safetensors", tmp_path / "alone.safetensors")
    pixels = torch.randn(2, 3, 12, 12)
    with torch.inference_mode():
        wanted = vit(pixels).last_hidden_state
    for path in (tmp_path / "vit", tmp_path / "alone.safetensors"):
        torch.testing.assert_close(image_features(ImageEncoder.load(path), pixels), wanted, **TIGHT)

    text = roberta(32, 2, 4, 64, vocabulary=50, positions=30)
    language_model = RobertaForMaskedLM(text.config)
    language_model.roberta.load_state_dict(text.state_dict())
    language_model.half().save_pretrained(tmp_path / "roberta")
    again = TextEncoder.load(tmp_path / "roberta")
    assert next(again.parameters()).dtype == torch.float32
    assert fingerprint(again.model.state_dict()) == fingerprint(text.half().float().state_dict())


def test_the_preprocessor_config_sets_the_mean_and_deviation_of_pixels(tmp_path: Path) -> None:
    hf_vit(32, 1, heads=4, hidden=64, patch=4, size=12).save_pretrained(tmp_path)
    assert ImageEncoder.load(tmp_path).model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    preprocessor = tmp_path / "preprocessor_config.json"
    preprocessor.write_text(json.dumps({"image_mean": [0, 0.25, 0.5], "image_std": [0.5, 1.0, 2.0]}))
    encoder = ImageEncoder.load(tmp_path)
    normalize = encoder.transform.transforms[-1]
    assert normalize.mean.tolist() == [0, 0.25, 0.5]
    assert normalize.std.tolist() == [0.5, 1.0, 2.0]
    preprocessor.write_text(json.dumps({"image_mean": 0.5}))
    with pytest.raises(UserError, match=r"preprocessor_config\.json: found image_mean 0\.5, wanted three numbers"):
        ImageEncoder.load(tmp_path)


@pytest.mark.parametrize(("width", "heads"), [(32, 4), (64, 4), (128, 2), (192, 3), (384, 6), (768, 12), (1024, 16)])
def test_the_rule_for_the_number_of_heads(width: int, heads: int) -> None:
    assert count_heads(width, {}, Path("encoder.bin")) == heads


@pytest.mark.parametrize("key", ["heads_num", "num_attention_heads"])
def test_a_config_beside_the_file_sets_the_number_of_heads(key: str, tmp_path: Path) -> None:
    model = roberta(64, 2, heads=8, hidden=64, vocabulary=50, positions=30)
    torch.save(tencent_roberta(model), tmp_path / "roberta.bin")
    torch.save(tencent_vit(timm_vit(64, 2, 8, 64, 4, 12)), tmp_path / "vit.bin")
    by_rule = TextEncoder.load(tmp_path / "roberta.bin")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({key: 8}))
    ids, mask = tokens(50)
    with torch.inference_mode():
        wanted = model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    torch.testing.assert_close(text_features(TextEncoder.load(tmp_path / "roberta.bin"), ids, mask), wanted, **TIGHT)
    assert not torch.allclose(text_features(by_rule, ids, mask), wanted, atol=1e-3)
    assert ImageEncoder.load(tmp_path / "vit.bin").model.blocks[0].attn.num_heads == 8

    # The config of a RoBERTa does not apply to a ViT in the same folder.
    config.write_text(json.dumps({key: 8, "model_type": "roberta", "layer_norm_eps": 0.5}))
    assert TextEncoder.load(tmp_path / "roberta.bin").model.config.layer_norm_eps == 0.5
    vit = ImageEncoder.load(tmp_path / "vit.bin").model
    assert (vit.blocks[0].attn.num_heads, vit.norm.eps) == (4, 1e-6)

    config.write_text(json.dumps({key: 7}))
    for encoder, file in ((TextEncoder, "roberta.bin"), (ImageEncoder, "vit.bin")):
        with pytest.raises(UserError, match="found 7 attention heads for width 64"):
            encoder.load(tmp_path / file)


@pytest.fixture(scope="module")
def tokenizer() -> RobertaTokenizerFast:
    return pretrain.build_tokenizer(["a boat in the sea", "the sea and the boats"] * 5, 300)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory, tokenizer: RobertaTokenizerFast) -> Path:
    """TencentPretrain's file of a tiny RoBERTa, without its tokenizer."""
    path = tmp_path_factory.mktemp("tencent") / "roberta_base_en_model.bin"
    torch.save(tencent_roberta(roberta(32, 1, 4, 64, vocabulary=len(tokenizer), positions=30)), path)
    return path


def save_whole(tokenizer: RobertaTokenizerFast, folder: Path) -> None:
    tokenizer.save_pretrained(folder)


def save_only_json(tokenizer: RobertaTokenizerFast, folder: Path) -> None:
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def save_vocabulary(tokenizer: RobertaTokenizerFast, folder: Path) -> None:
    """Save vocab.json and merges.txt, as published by TencentPretrain and RoBERTa's authors."""
    tokenizer.backend_tokenizer.model.save(str(folder))


@pytest.mark.parametrize("save", [save_whole, save_only_json, save_vocabulary])
@pytest.mark.parametrize("beside", [True, False])
def test_the_tokenizer_is_beside_the_file_or_in_another_folder(
    save: Callable[[RobertaTokenizerFast, Path], None],
    beside: bool,
    text_file: Path,
    tokenizer: RobertaTokenizerFast,
    tmp_path: Path,
) -> None:
    save(tokenizer, tmp_path)
    if beside:
        encoder = TextEncoder.load(shutil.copy(text_file, tmp_path))
    else:
        encoder = TextEncoder.load(text_file, tokenizer=tmp_path)
    # RoBERTa's own vocabulary puts no space before the first word.
    texts = [("the sea", "the boat in the sea"), ("boat", "")]
    ids = encoder.tokenize(texts)
    if save is save_vocabulary:
        assert encoder.tokenizer.decode(ids["input_ids"][0]) == "<s>the sea</s></s>the boat in the sea</s>"
    else:
        assert ids["input_ids"].tolist() == tokenizer(*zip(*texts, strict=True), padding=True)["input_ids"]
    assert ids["attention_mask"][1].sum() < ids["attention_mask"][0].sum()
    assert [len(row) for row in encoder(texts)] == ids["attention_mask"].sum(1).tolist()


def test_without_a_tokenizer_ids_are_encoded_and_texts_refused(text_file: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.load(text_file)
    assert text_features(encoder, *tokens(50)).shape == (15, 32)
    message = f"{text_file.parent}: found no tokenizer.json or vocab.json"
    for act in (lambda: encoder([("boat", "")]), lambda: encoder.tokenize([("boat", "")]), encoder.require_tokenizer):
        with pytest.raises(UserError, match=message):
            act()
    with pytest.raises(UserError, match=f"{tmp_path}: found no tokenizer.json or vocab.json"):
        TextEncoder.load(text_file, tokenizer=tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match=r"merges\.txt"):
        TextEncoder.load(text_file, tokenizer=tmp_path)


def test_a_tokenizer_that_is_not_the_encoders_is_refused(
    text_file: Path, tokenizer: RobertaTokenizerFast, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=f"{tmp_path}: its tokenizer files cannot be read"):
        TextEncoder.load(text_file, tokenizer=tmp_path)
    tokenizer.save_pretrained(tmp_path)
    torch.save(tencent_roberta(roberta(32, 1, 4, 64, vocabulary=50, positions=30)), tmp_path / "roberta.bin")
    with pytest.raises(UserError, match=rf"found a tokenizer of {len(tokenizer)} tokens.*has 50"):
        TextEncoder.load(tmp_path)


def test_a_tokenizer_folder_runs_no_code_and_names_no_other_file(text_file: Path, tmp_path: Path) -> None:
    """transformers would build a tokenizer of any class, from the code and the files that the folder names."""
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "words.txt").write_text("[UNK]\na\n")
    for settings in (
        {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", "own.Own"]}},
        {"tokenizer_class": "BertTokenizer", "vocab_file": str(tmp_path / "words.txt")},
    ):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        with pytest.raises(UserError, match="lacks tokens of RoBERTa"):
            TextEncoder.load(text_file, tokenizer=tmp_path)
    assert not (tmp_path / "ran").exists()


GROW = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
SPLIT = {"type": "Split", "pattern": {"Regex": "^(a|aa|a?)+$"}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"normalizer": {"type": "Sequence", "normalizers": [GROW] * 34}}, "found normalizer .*wanted none"),
        ({"pre_tokenizer": SPLIT}, "found pre_tokenizer .*wanted the one of type 'ByteLevel'"),
        ({"model": {"type": "WordLevel", "vocab": {}, "unk_token": "<unk>"}}, "found model 'WordLevel', wanted 'BPE'"),
        ({"model": None}, "found model None, wanted 'BPE'"),
        ({"model": {"vocab": {}, "merges": [], "dropout": 0.5}}, "found dropout 0.5, wanted none"),
        ({"model": {"vocab": {"a": -1}, "merges": []}}, "cannot be read"),
        ({"model": {"vocab": {"a": 0}, "merges": [["a", 1]]}}, "cannot be read"),
        ({"model": {"vocab": {"a": 0}, "merges": None}}, "cannot be read"),
        ({"added_tokens": 3}, "cannot be read"),
    ],
)
def test_only_tokenizers_of_byte_level_bpe_are_read(
    text_file: Path, tokenizer: RobertaTokenizerFast, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | change))
    with pytest.raises(UserError, match=f"{tmp_path}: its tokenizer files cannot be read: .*{message}|{message}"):
        TextEncoder.load(text_file, tokenizer=tmp_path)


@pytest.mark.parametrize("save", [save_only_json, save_vocabulary])
@pytest.mark.parametrize("number", [10**6, 2 * 10**9, 2**31])
def test_a_token_beyond_the_encoders_vocabulary_is_refused(
    save: Callable[[RobertaTokenizerFast, Path], None],
    number: int,
    text_file: Path,
    tokenizer: RobertaTokenizerFast,
    tmp_path: Path,
) -> None:
    save(tokenizer, tmp_path)
    path = tmp_path / ("vocab.json" if save is save_vocabulary else "tokenizer.json")
    content = json.loads(path.read_text())
    (content if save is save_vocabulary else content["model"]["vocab"])["a"] = number
    path.write_text(json.dumps(content))

    def check() -> None:
        # Memory for all numbers up to it would be several gigabytes.
        limit = 2**30 + resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with pytest.raises(UserError, match=f"found a tokenizer of {number + 1} tokens"):
            TextEncoder.load(text_file, tokenizer=tmp_path)

    run_apart(check)


def test_extraction_without_a_tokenizer_ends_before_any_work(
    text_file: Path, tokenizer: RobertaTokenizerFast, tmp_path: Path, capsys: Any
) -> None:
    arguments = ["extract", "--data", str(tmp_path), "--text", str(text_file), "--image", str(tmp_path / "none")]
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"\nerror: {text_file.parent}: found no tokenizer.json")
    assert not list(tmp_path.iterdir())

    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SystemExit):
        main([*arguments, "--tokenizer", str(tmp_path)])
    assert "found none of the annotation files" in capsys.readouterr().err


def small_files() -> dict[str, Mapping[str, Tensor]]:
    """The tensors of a small encoder in each layout, by name."""
    text, image = roberta(32, 1, 4, 64, 50, 30), timm_vit(32, 1, 4, 64, 4, 12)
    return {
        "roberta_hf": text.state_dict(),
        "roberta_tencent": tencent_roberta(text),
        "vit_timm": image.state_dict(),
        "vit_hf": hf_vit(32, 1, 4, 64, 4, 12).state_dict(),
        "vit_tencent": tencent_vit(image),
    }


def save_small(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> Path:
    torch.save(dict(tensors), folder / f"{name}.bin")
    if name == "roberta_hf":
        roberta(32, 1, 4, 64, 50, 30).config.save_pretrained(folder)
    return folder / f"{name}.bin"


@pytest.mark.parametrize("name", ["roberta_hf", "roberta_tencent", "vit_timm", "vit_hf", "vit_tencent"])
def test_the_other_encoders_file_is_refused(name: str, tmp_path: Path) -> None:
    path = save_small(tmp_path, name, small_files()[name])
    if name.startswith("roberta"):
        TextEncoder.load(path)
        with pytest.raises(UserError, match=r"\.bin: holds a RoBERTa text encoder, wanted a ViT"):
            ImageEncoder.load(path)
    else:
        ImageEncoder.load(path)
        with pytest.raises(UserError, match=r"\.bin: holds a ViT image encoder, wanted a RoBERTa"):
            TextEncoder.load(path)


@pytest.mark.parametrize("name", ["roberta_hf", "roberta_tencent", "vit_timm", "vit_hf", "vit_tencent"])
def test_each_tensor_that_is_missing_misshapen_or_out_of_place_is_named(name: str, tmp_path: Path) -> None:
    whole = {key: t for key, t in small_files()[name].items() if not key.startswith(("target.", "pooler."))}
    encoder = TextEncoder if name.startswith("roberta") else ImageEncoder

    def refused(tensors: Mapping[str, Tensor]) -> str:
        with pytest.raises(UserError) as refusal:
            encoder.load(save_small(tmp_path, name, tensors))
        return str(refusal.value)

    assert "1 fault found" in refused(whole | {"extra.weight": torch.zeros(3)})
    assert "extra.weight: is not part of this model" in refused(whole | {"extra.weight": torch.zeros(3)})
    for key, tensor in whole.items():
        message = refused({other: t for other, t in whole.items() if other != key})
        assert "1 fault found" in message
        assert f"{key}: is missing" in message
        narrow = refused(whole | {key: tensor[..., :-1]})
        # One position less is no square of patches, and one pixel less is another patch size.
        assert key in narrow or "positions" in narrow, (key, narrow)
        assert f"{key}: found shape []" in refused(whole | {key: torch.tensor(1.0)})
    assert "wanted floats" in refused(whole | {key: tensor.long()})


class Touch:
    """Create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("encoder", [TextEncoder, ImageEncoder])
@pytest.mark.parametrize("as_folder", [True, False])
def test_files_that_hold_no_encoder_are_refused(encoder: Any, as_folder: bool, tmp_path: Path) -> None:
    whole = small_files()["roberta_hf" if encoder is TextEncoder else "vit_hf"]
    save_file(whole, tmp_path / "whole.safetensors")
    torch.save(dict(whole), tmp_path / "whole.bin")
    (tmp_path / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    for kind in ("safetensors", "bin"):
        content = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"short.{kind}").write_bytes(content[: len(content) // 2])
    torch.save(dict(whole) | {"code": Touch(tmp_path / "ran")}, tmp_path / "code.bin")
    save_file({"conv1": torch.zeros(3)}, tmp_path / "other.safetensors")
    refusals = {
        "text.safetensors": "is neither a safetensors file nor one saved with torch.save",
        "short.safetensors": "is not a complete safetensors file",
        "short.bin": "is truncated or damaged",
        "code.bin": "holds more than tensors",
        "other.safetensors": r"holds no encoder in a supported layout \(its tensors: conv1\); wanted a",
    }
    for name, message in refusals.items():
        path = tmp_path / name
        if as_folder:
            path = tmp_path / f"folder of {name}" / USUAL[path.suffix]
            path.parent.mkdir()
            shutil.copy(tmp_path / name, path)
        with pytest.raises(UserError, match=f"{re.escape(str(path))}: {message}"):
            encoder.load(path.parent if as_folder else path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("encoder", [TextEncoder, ImageEncoder])
def test_folders_that_hold_no_or_several_weights_are_refused(encoder: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"{tmp_path / 'none'}: found no such file"):
        encoder.load(tmp_path / "none")
    with pytest.raises(UserError, match=rf"{tmp_path}: found nothing, wanted a \w+: .*TencentPretrain's"):
        encoder.load(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"found notes\.txt, wanted"):
        encoder.load(tmp_path)
    for name in ("a.bin", "b.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"found a\.bin, b\.safetensors; name the one file"):
        encoder.load(tmp_path)


def test_a_config_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    files, config = small_files(), tmp_path / "config.json"
    text, image = (
        save_small(tmp_path, "roberta_hf", files["roberta_hf"]),
        save_small(tmp_path, "vit_hf", files["vit_hf"]),
    )
    timm_file = save_small(tmp_path, "vit_timm", files["vit_timm"])
    good = json.loads(config.read_text())

    def refused(load: Callable[[Path], object], path: Path, content: str, match: str) -> None:
        config.write_text(content)
        with pytest.raises(UserError, match=match):
            load(path)

    refused(TextEncoder.load, text, json.dumps(good | {"vocab_size": 51}), "word_embeddings.weight: found shape")
    refused(TextEncoder.load, text, json.dumps(good | {"num_attention_heads": 5}), "does not describe a RoBERTa")
    refused(TextEncoder.load, text, json.dumps(good | {"model_type": "bert"}), "model_type 'bert', wanted 'roberta'")
    refused(ImageEncoder.load, image, json.dumps(good), "model_type 'roberta', wanted 'vit'")
    refused(ImageEncoder.load, image, '{"hidden_act": "relu"}', "only 'gelu' is read")
    refused(ImageEncoder.load, image, '{"layer_norm_eps": "small"}', "found layer_norm_eps 'small'")
    refused(ImageEncoder.load, timm_file, '{"architecture": "vit_of_nobody"}', "timm cannot build the ViT")
    refused(ImageEncoder.load, timm_file, '{"architecture": "resnet18"}', "found ResNet, wanted a vision transformer")
    refused(ImageEncoder.load, timm_file, '{"architecture": "vit_tiny_patch16_224"}', r"blocks\.1\..* is missing")
    refused(TextEncoder.load, text, json.dumps(good | {"num_hidden_layers": 3_000_000}), "3000000, its weights have 1")
    refused(
        TextEncoder.load, text, json.dumps(good | {"is_decoder": True}), "found is_decoder True, only False is read"
    )
    refused(TextEncoder.load, text, json.dumps(good | {"pad_token_id": 3}), "found pad_token_id 3, only 1 is read")
    timm = {"architecture": "vit_tiny_patch16_224"}
    refused(ImageEncoder.load, timm_file, json.dumps(timm | {"model_args": {"depth": 3_000_000}}), "weights have 1")
    refused(ImageEncoder.load, timm_file, json.dumps(timm | {"model_args": {"act_layer": "relu"}}), "found .*act_layer")
    refused(ImageEncoder.load, timm_file, json.dumps(timm | {"model_args": [1]}), r"found model_args \[1\]")
    refused(ImageEncoder.load, timm_file, "[1]", "found a list, wanted a JSON object")
    refused(TextEncoder.load, text, "{", "is not readable JSON")
    config.unlink()
    with pytest.raises(UserError, match=r"found no config\.json beside it"):
        TextEncoder.load(text)
