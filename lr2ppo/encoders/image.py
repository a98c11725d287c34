"""The image encoder: a timm vision transformer over single frames."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from timm.models import VisionTransformer
from torch import Tensor, nn

from lr2ppo.data.frames import to_rgb
from lr2ppo.encoders.weights.vit import load_vit
from lr2ppo.errors import UserError, show
from lr2ppo.ops.linear import use_fast_linear

FrameTokens = Literal["class", "patches"]
# Patch tokens are averaged to a grid of this many rows and columns per frame.
PATCH_GRID = 4
# More are encoded in batches, so that memory does not grow with their number.
FRAMES_AT_ONCE = 64
# The part of a resized picture that is kept.
LEAST_CROP = 0.1
# All that timm's transform takes.
PREPARATION = ("input_size", "interpolation", "mean", "std", "crop_pct", "crop_mode")


def _check_preparation(model: VisionTransformer) -> None:
    """Raise ValueError if a model's config would make pictures of another size, or enlarge them beyond all memory."""
    settings = resolve_model_data_config(model)
    if tuple(settings["input_size"][1:]) != tuple(model.patch_embed.img_size):
        raise ValueError(f"input_size {show(settings['input_size'])}, its model takes {model.patch_embed.img_size}")
    if not LEAST_CROP <= settings["crop_pct"] <= 1:
        raise ValueError(f"crop_pct {show(settings['crop_pct'])}, wanted {LEAST_CROP} to 1")


class ImageEncoder(nn.Module):
    """A ViT and its preprocessing; a frame becomes its class token, or its patch tokens pooled to a small grid."""

    def __init__(self, model: VisionTransformer, frame_tokens: FrameTokens = "class") -> None:
        super().__init__()
        self.model = model.eval()
        use_fast_linear(self.model)
        self.frame_tokens = frame_tokens
        self._preparation = resolve_model_data_config(model)
        self.transform = create_transform(**self._preparation, is_training=False)

    @classmethod
    def load(cls, path: Path | str, frame_tokens: FrameTokens = "class") -> Self:
        """Read a timm or Hugging Face ViT folder, only its weights file, or TencentPretrain's ViT file.

        The layout is detected from the tensors; for the number of attention heads see `weights.files.count_heads`.
        Raises `UserError` if something is missing or does not fit.
        """
        model = load_vit(Path(path))
        try:
            _check_preparation(model)
            encoder = cls(model, frame_tokens)
            encoder.settings()
            model.patch_embed(encoder.transform(Image.new("RGB", (32, 16)))[None])
        except Exception as error:
            # timm raises many types for bad settings.
            raise UserError(f"{path}: its config.json prepares pictures that it cannot read: {error}") from None
        return encoder

    @property
    def width(self) -> int:
        return int(self.model.embed_dim)

    @property
    def tokens_per_frame(self) -> int:
        return 1 if self.frame_tokens == "class" else PATCH_GRID**2

    def settings(self) -> str:
        """What decides the features besides tensors and `frame_tokens`, in words: the model's, then how it sees."""
        block = self.model.blocks[0]
        model = (
            f"{block.attn.num_heads} heads, {type(block.mlp.act).__name__}, epsilon {block.norm1.eps:g}, "
            f"{type(block).__name__}, {self.model.num_prefix_tokens} tokens before the patches"
        )
        return ", ".join([model, *(f"{key} {_in_words(self._preparation[key])}" for key in PREPARATION)])

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """All tokens after the last norm, class token first: `[B, 3, H, W] -> [B, 1 + patches, D]`."""
        tokens: Tensor = self.model.forward_features(pixels)
        return tokens

    def frame_features(self, tokens: Tensor) -> Tensor:
        """Select or pool a frame's tokens: `[B, 1 + patches, D] -> [B, tokens_per_frame, D]`."""
        if self.frame_tokens == "class":
            return tokens[:, :1]
        patches = tokens[:, self.model.num_prefix_tokens :]
        rows, columns = self.model.patch_embed.grid_size
        grid = patches.transpose(1, 2).unflatten(2, (rows, columns))
        return F.adaptive_avg_pool2d(grid, PATCH_GRID).flatten(2).transpose(1, 2)

    def prepare(self, image: Image.Image) -> Tensor:
        """Make an image what the model reads, much smaller than a large picture: `[3, H, W]`."""
        pixels: Tensor = self.transform(to_rgb(image))
        return pixels

    @torch.inference_mode()
    def forward(self, images: Sequence[Image.Image | Tensor]) -> Tensor:
        """Features of images, or of what `prepare` made of them: `[images, tokens_per_frame, D]`."""
        device = next(self.model.parameters()).device
        features = []
        for start in range(0, len(images), FRAMES_AT_ONCE):
            some = images[start : start + FRAMES_AT_ONCE]
            pixels = torch.stack([each if isinstance(each, Tensor) else self.prepare(each) for each in some])
            features.append(self.frame_features(self.encode_pixels(pixels.to(device))))
        return torch.cat(features)


def _in_words(value: object) -> str:
    """A setting's value, the same for a list and a tuple, and for 1 and 1.0."""
    if isinstance(value, list | tuple):
        return " ".join(map(_in_words, value))
    return f"{value:.9g}" if isinstance(value, int | float) else str(value)
