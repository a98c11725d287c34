"""Encode raw clips with a text and an image encoder, into the same features as those a run was trained on."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from lr2ppo.config.schema import ModelConfig
from lr2ppo.data.features.encoders import Encoding, encoding_differences
from lr2ppo.data.features.writer import StoredType
from lr2ppo.encoders.image import FrameTokens, ImageEncoder
from lr2ppo.encoders.text import TextEncoder
from lr2ppo.errors import UserError
from lr2ppo.tensors import fingerprint

HINT = "give its path with text=, tokenizer= or image= (--text, --tokenizer, --image)"


@dataclass(frozen=True)
class EncoderPaths:
    """The encoders' paths, None if not given."""

    text: Path | None = None
    tokenizer: Path | None = None
    image: Path | None = None


@dataclass(frozen=True)
class EncodedClip:
    """A clip's features: text `[tokens, text width]` per label, label_span [labels, 2], frames [rows, image width]."""

    text: list[Tensor]
    label_span: Tensor
    frames: Tensor


class ClipEncoder:
    """A run's text and image encoder; features are rounded to the dtype they were stored in."""

    def __init__(self, text: TextEncoder, image: ImageEncoder, encoding: Encoding) -> None:
        self.text, self.image, self.encoding = text, image, encoding
        self._dtype: torch.dtype = getattr(torch, encoding.dtype)

    @torch.inference_mode()
    def __call__(self, labels: Sequence[str], description: str, frames: Sequence[Image.Image | Tensor]) -> EncodedClip:
        """Encode a clip, its frames as images or prepared by `image.prepare`; repeated ones are encoded once."""
        texts = [(label, description) for label in labels]
        spans = torch.tensor(self.text.label_spans(texts))
        return EncodedClip([self._as_stored(row) for row in self.text(texts)], spans, self._encode_frames(frames))

    def _encode_frames(self, frames: Sequence[Image.Image | Tensor]) -> Tensor:
        """Frame features `[frames * tokens per frame, image width]`."""
        if not frames:
            return torch.zeros(0, self.image.width)
        distinct = {id(frame): frame for frame in frames}
        places = {key: place for place, key in enumerate(distinct)}
        features = self._as_stored(self.image(list(distinct.values())))
        return features[[places[id(frame)] for frame in frames]].flatten(0, 1)

    def _as_stored(self, features: Tensor) -> Tensor:
        return features.float().cpu().to(self._dtype).float()


def describe_encoding(
    text: TextEncoder, text_path: Path, image: ImageEncoder, image_path: Path, dtype: StoredType
) -> Encoding:
    """Describe the features of two encoders, read from these paths."""
    # Paths may hold bytes that are not valid UTF-8, which cannot be stored.
    paths = (text_path, image_path, text.tokenizer_folder)
    text_path, image_path, folder = (Path(os.fsencode(path).decode(errors="replace")) for path in paths)
    return Encoding(
        text_encoder=f"{text_path.name}@{fingerprint(text.state_dict())}",
        image_encoder=f"{image_path.name}@{fingerprint(image.state_dict())}",
        tokenizer=f"{folder.name}@{text.tokenizer_fingerprint()}",
        frame_tokens=image.frame_tokens,
        max_text_tokens=text.max_tokens,
        dtype=dtype,
        text_path=str(text_path),
        tokenizer_path=str(folder),
        image_path=str(image_path),
        text_settings=text.settings(),
        image_settings=image.settings(),
        tokenizer_parts=text.tokenizer_parts(),
    )


def open_encoders(
    run: str, wanted: Encoding | None, given: EncoderPaths, model: ModelConfig, device: torch.device
) -> ClipEncoder:
    """Load a run's encoders from the paths given, or from those at extraction.

    A run that names no encoders uses those given. Raises `UserError` if one is missing, is not the one that the run
    names, or does not fit its model.
    """
    text_path = given.text or _known_path(run, "text", wanted)
    image_path = given.image or _known_path(run, "image", wanted)
    tokenizer = given.tokenizer
    if tokenizer is None and wanted is not None and Path(wanted.tokenizer_path).is_dir():
        tokenizer = Path(wanted.tokenizer_path)
    text = TextEncoder.load(text_path, tokenizer)
    text.require_tokenizer()
    model_tokens: FrameTokens = "class" if model.tokens_per_frame == 1 else "patches"
    image = ImageEncoder.load(image_path, wanted.frame_tokens if wanted else model_tokens)
    if wanted is not None:
        text.max_tokens = min(text.max_tokens, wanted.max_text_tokens)
    found = describe_encoding(text, text_path, image, image_path, wanted.dtype if wanted else "float32")
    if wanted is not None and (differences := encoding_differences(found, wanted)):
        raise UserError(
            f"{run}: was trained on features of other encoders: found {'; '.join(differences)} "
            f"({text_path}, {image_path}); {HINT}"
        )
    if model.head == "flatten":
        text.max_tokens = min(text.max_tokens, model.text_tokens)
    mismatches = model.mismatches(
        text_width=text.width, image_width=image.width, tokens_per_frame=image.tokens_per_frame
    )
    if mismatches:
        raise UserError(
            f"{run}: features do not fit its model: found {'; '.join(mismatches)} ({text_path}, {image_path}); {HINT}"
        )
    return ClipEncoder(text.to(device), image.to(device), found)


def _known_path(run: str, encoder: Literal["text", "image"], wanted: Encoding | None) -> Path:
    if wanted is None:
        raise UserError(f"{run}: the features it was trained on name no {encoder} encoder; {HINT}")
    known = {"text": (wanted.text_encoder, wanted.text_path), "image": (wanted.image_encoder, wanted.image_path)}
    name, path = known[encoder]
    if not Path(path).exists():
        raise UserError(f"{run}: its {encoder} encoder {name} was {path} at extraction, which no longer exists; {HINT}")
    return Path(path)
