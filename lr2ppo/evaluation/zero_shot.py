"""A CLIP or SigLIP model of transformers that scores labels against frames without any training here."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPModel, SiglipImageProcessor, SiglipModel
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from lr2ppo.config.schema import ZeroShotConfig
from lr2ppo.data.annotations import Clip
from lr2ppo.data.frames import evenly_spaced, frames_fingerprint, read_image, require_frames, to_rgb
from lr2ppo.errors import UserError, advise, raise_faults, show
from lr2ppo.evaluation.scoring import Scores
from lr2ppo.files import (
    check_folder_inside,
    check_inside,
    file_fingerprint,
    read_json_object,
    read_own_json,
    write_json,
)
from lr2ppo.runs.records import Finite, Record, Whole
from lr2ppo.tensors import check_tensors, read_tensors

MODELS: dict[str, Any] = {"clip": CLIPModel, "siglip": SiglipModel}
LABEL = "{label}"
WEIGHTS, CONFIG, TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
PREPARATION = "preprocessor_config.json"
# What is read of a config.
SHAPE_KEYS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act", "layer_norm_eps"),
    "projection_dim",
)
TEXT_KEYS = (
    *SHAPE_KEYS,
    *("vocab_size", "max_position_embeddings", "pad_token_id", "bos_token_id", "eos_token_id", "projection_size"),
)
VISION_KEYS = (*SHAPE_KEYS, "image_size", "patch_size", "num_channels", "vision_use_head")
IMAGE_PROCESSORS: dict[str, Any] = {"clip": CLIPImageProcessor, "siglip": SiglipImageProcessor}
# What these processors take; other keys are about other models.
PREPARATION_KEYS = (
    "do_resize",
    "size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "do_convert_rgb",
)


class KeptScores(Record):
    """The scores of each clip's labels, and the number of the model's weights."""

    weights: Whole
    scores: list[list[Finite]]


class ZeroShotScorer(nn.Module):
    """A label's score is the mean over a clip's frames of the model's logit of the label's text and the frame."""

    def __init__(
        self, model: Any, tokenizer: Tokenizer, image_processor: Any, source: Path, prompt: str = LABEL
    ) -> None:
        """`prompt` is the text of a label, which takes the place of `{label}` in it; `source` is for messages."""
        super().__init__()
        self.source = source
        self.model = model.eval()
        self.tokenizer, self.image_processor, self.prompt = tokenizer, image_processor, prompt

    @classmethod
    def load(cls, folder: Path, prompt: str = LABEL) -> Self:
        """Read a Hugging Face folder of a CLIP or SigLIP model with its tokenizer and image processor.

        Nothing is downloaded, and no code or pickle of the folder is run. Raises `UserError` if a file is missing or
        does not fit.
        """
        for name in (CONFIG, WEIGHTS, TOKENIZER, PREPARATION):
            if not (folder / name).is_file():
                raise UserError(f"{folder}: found no {name}, wanted the folder of a CLIP or SigLIP model")
        kind, config = _read_config(folder / CONFIG)
        transformers_logging.disable_progress_bar()
        with _read_by_transformers(folder):
            tensors = _read_weights(folder / WEIGHTS, MODELS[kind], config)
            # Not from the folder, whose config may name weights elsewhere, and kernels to download.
            model = MODELS[kind].from_pretrained(None, config=config, state_dict=tensors, attn_implementation="eager")
            # transformers would build processors and tokenizers of any class that the folder names, some of which read
            # other files.
            image_processor = IMAGE_PROCESSORS[kind](**_read_preparation(folder / PREPARATION))
            tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
            _prepare(tokenizer, config.text_config, kind, folder)
            pixels = image_processor(images=[Image.new("RGB", (32, 16))], return_tensors="pt")["pixel_values"]
        side = model.config.vision_config.image_size
        if pixels.shape != (1, 3, side, side):
            found = " x ".join(map(str, pixels.shape[2:]))
            raise UserError(
                f"{folder / PREPARATION}: prepares pictures of {found} pixels, its model takes {side} x {side}"
            )
        return cls(model, tokenizer, image_processor, folder, prompt)

    @torch.inference_mode()
    def forward(self, frames: Sequence[Image.Image], labels: Sequence[str]) -> Tensor:
        """Scores of labels by at least one frame: [labels] float64."""
        device = next(self.model.parameters()).device
        texts = [self.prompt.replace(LABEL, label) for label in labels]
        if isinstance(self.model, SiglipModel):
            # As it is trained, which the tokenizer's file does not say of SigLIP 2.
            texts = [text.lower() for text in texts]
        with _read_by_transformers(self.source):
            encoded = self.tokenizer.encode_batch(texts)
        tokens = {"input_ids": torch.tensor([text.ids for text in encoded], device=device)}
        if isinstance(self.model, CLIPModel):
            tokens["attention_mask"] = torch.tensor([text.attention_mask for text in encoded], device=device)
        pixels = self.image_processor(images=[to_rgb(frame) for frame in frames], return_tensors="pt")["pixel_values"]
        logits: Tensor = self.model(**tokens, pixel_values=pixels.to(device)).logits_per_image
        return logits.double().mean(0).cpu()


def _prepare(tokenizer: Tokenizer, text: Any, kind: str, folder: Path) -> None:
    """Let a tokenizer cut and fill texts as a model is trained; raises `UserError` if it does not fit the model.

    transformers takes the filling token from the tokenizer's own config, where there is one.
    """
    largest = max(tokenizer.get_vocab().values())
    if largest >= text.vocab_size:
        raise UserError(f"{folder / TOKENIZER}: found the token {largest}, wanted at most {text.vocab_size - 1}")
    given = read_json_object(folder / TOKENIZER_CONFIG) if (folder / TOKENIZER_CONFIG).is_file() else {}
    name = given.get("pad_token")
    name = name.get("content") if isinstance(name, dict) else name
    pad = tokenizer.token_to_id(name) if isinstance(name, str) else (tokenizer.padding or {}).get("pad_id")
    pad = text.pad_token_id if pad is None else pad
    if not isinstance(pad, int) or not 0 <= pad < text.vocab_size:
        raise UserError(f"{folder}: found {show(pad)} as its pad token, wanted a token of the model")
    tokenizer.enable_truncation(text.max_position_embeddings)
    # SigLIP is trained on texts of full length.
    length = text.max_position_embeddings if kind == "siglip" else None
    tokenizer.enable_padding(direction=given.get("padding_side", "right"), pad_id=pad, length=length)


def _read_preparation(path: Path) -> dict[str, Any]:
    """Read how pictures are prepared; raises `UserError` if it is of another model's processor."""
    content = read_json_object(path)
    found = str(content.get("image_processor_type", content.get("feature_extractor_type", "CLIP")))
    if not found.startswith(("CLIP", "Siglip")):
        raise UserError(f"{path}: found image_processor_type {show(found)}, wanted that of CLIP or SigLIP")
    return {key: value for key, value in content.items() if key in PREPARATION_KEYS}


def _read_config(path: Path) -> tuple[str, Any]:
    """Read the kind of a model, one of `MODELS`, and its shape; raises `UserError` if it is of another kind.

    Only the shape is taken: other keys let transformers read other files, or download code.
    """
    content = read_json_object(path)
    kind = content.get("model_type")
    if not isinstance(kind, str) or kind not in MODELS:
        raise UserError(f"{path}: found model_type {show(kind)}, wanted {' or '.join(MODELS)}")
    if any("quantization_config" in part for part in (content, *content.values()) if isinstance(part, dict)):
        raise UserError(f"{path}: found quantization_config, wanted weights as they were trained; download those")
    parts: dict[str, Any] = _plain(content, ("projection_dim",))
    for part, keys in (("text_config", TEXT_KEYS), ("vision_config", VISION_KEYS)):
        # CLIP's models of earlier versions have both.
        for name in (part, f"{part}_dict") if kind == "clip" else (part,):
            if isinstance(content.get(name), dict):
                parts[name] = _plain(content[name], keys)
    with _read_by_transformers(path):
        return kind, MODELS[kind].config_class(**parts)


def _plain(given: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: given[key] for key in keys if isinstance(given.get(key), int | float | str)}


def _read_weights(path: Path, kind: Any, config: Any) -> dict[str, Tensor]:
    """Read the tensors of a model in float32; raises `UserError` if one is missing or of another shape."""
    found = read_tensors(path)
    if config.text_config.num_hidden_layers + config.vision_config.num_hidden_layers > len(found):
        raise UserError(
            f"{path}: found {len(found)} tensors, fewer than its config has layers; download the model again"
        )
    with torch.device("meta"):
        wanted = {name: tensor.shape for name, tensor in kind(config).state_dict().items()}
    # Earlier versions also kept the numbers of the positions.
    tensors = {name: tensor for name, tensor in found.items() if name in wanted}
    check_tensors(wanted, tensors, path)
    return {name: tensor.float() for name, tensor in tensors.items()}


@contextmanager
def _read_by_transformers(source: Path) -> Iterator[None]:
    """Within the context, what transformers and its tokenizers raise is raised as `UserError`."""
    try:
        yield
    except (UserError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        # They raise many types for files that do not fit, and tokenizers one that is no Exception.
        raise UserError(f"{source}: cannot be read by transformers: {error}; download the model again") from None


def zero_shot_scores(
    config: ZeroShotConfig, clips: Sequence[Clip], root: Path, frames: int, device: torch.device, kept: Path
) -> tuple[list[Scores], int]:
    """Score every clip's labels, `[labels]` each, from at most `frames` of its frames, which are evenly spaced.

    Returns the scores and the number of the model's weights. They are kept in the folder `kept`, in a file named by all
    that they depend on. Raises `UserError` if the model or a frame cannot be used or changes meanwhile, if a clip has
    no frames, or if a score is not finite.
    """
    frames_root = config.frames_root or root
    if blind := [clip.id for clip in clips if not clip.images]:
        raise UserError(
            f"{root}: clip {blind[0]} has no frames, by which {config.zero_shot} scores labels; remove the row"
        )
    require_frames(clips, frames_root)
    facts = _facts(config, clips, frames_root, frames)
    file = kept / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"
    check_folder_inside(kept)
    check_inside(file)
    found = _read_kept(file, clips)
    if found is None:
        scorer = load_scorer(config.zero_shot, config.prompt, json.dumps(facts["model"])).to(device)
        scores = []
        for clip in tqdm(clips, desc="zero shot", unit="clip", leave=False, disable=None):
            chosen = evenly_spaced(len(clip.images), min(frames, len(clip.images)))
            pictures = [read_image(frames_root / clip.images[place]) for place in chosen.tolist()]
            scores.append(scorer(pictures, clip.labels))
        _require_finite(scores, clips, config.zero_shot)
        if _facts(config, clips, frames_root, frames) != facts:
            raise UserError(
                f"{config.zero_shot}: the model, or the frames under {frames_root}, changed while clips were scored; "
                "run the same command again"
            )
        weights = sum(each.numel() for each in scorer.parameters())
        found = KeptScores(weights=weights, scores=[own.tolist() for own in scores])
        write_json(file, found.model_dump())
    return [np.array(row) for row in found.scores], found.weights


def _facts(config: ZeroShotConfig, clips: Sequence[Clip], frames_root: Path, frames: int) -> dict[str, Any]:
    """All that scores depend on, files by their fingerprints."""
    return {
        "model": _fingerprints(config.zero_shot),
        "transformers": transformers_version,
        "prompt": config.prompt,
        "frames": frames,
        "clips": [[clip.id, clip.labels, frames_fingerprint(clip, frames_root)] for clip in clips],
    }


def _read_kept(file: Path, clips: Sequence[Clip]) -> KeptScores | None:
    """Read scores that were kept; None if there are none, or they are damaged."""
    try:
        found = KeptScores(**read_own_json(file))
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return found if [len(own) for own in found.scores] == [len(clip.labels) for clip in clips] else None


def _require_finite(scores: Sequence[Tensor], clips: Sequence[Clip], folder: Path) -> None:
    faults = [
        f"clip {clip.id}: its scores are not all finite"
        for clip, own in zip(clips, scores, strict=True)
        if not own.isfinite().all()
    ]
    raise_faults(folder, faults, "its weights or its picture preparation are damaged; download the model again")


@cache
def load_scorer(folder: Path, prompt: str, files: str) -> ZeroShotScorer:
    """Load a model once for all data sets, and again if the fingerprints of its `files` change."""
    return ZeroShotScorer.load(folder, prompt)


def _fingerprints(folder: Path) -> dict[str, str]:
    """The fingerprints of the files that decide a model's scores; raises `UserError` if one cannot be read."""
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix in (".json", ".safetensors", ".txt", ".model"))
        return {file.name: file_fingerprint(file) for file in files}
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror or error}; {advise(error)}") from None
