"""The trunk all models share: a clip's labels, description and frames become one vector a label."""

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lr2ppo.config import ModelConfig
from lr2ppo.models.fusion import MLP, FusionBlock, ResidualMLP


class LabelEncoder(nn.Module):
    """Each label's text tokens query the clip's frames; a head turns the fused tokens into one vector a label.

    The head `flatten` is the published one and takes exactly `text_tokens` tokens and `frames` frames; `pooled`
    takes any number of both.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.width % config.heads:
            raise ValueError(f"model.width {config.width} is not a multiple of model.heads {config.heads}")
        self.config = config
        width, text_width, image_width = (
            config.width,
            config.text_width or config.width,
            config.image_width or config.width,
        )
        self.fusion = FusionBlock(width, config.heads, config.attention, config.dropout)
        self.text_proj: MLP | ResidualMLP
        self.image_proj: MLP | ResidualMLP
        self.head: FlattenHead | PooledHead
        if config.head == "flatten":
            self.text_proj = MLP(text_width, 4 * width, width)
            self.image_proj = MLP(image_width, 4 * width, width)
            self.head = FlattenHead(width, config.text_tokens, config.frames)
        else:
            self.text_proj = ResidualMLP(text_width, width)
            self.image_proj = ResidualMLP(image_width, width)
            self.head = PooledHead(width)
            self._start_aligned()

    def forward(
        self, text: Tensor, frames: Tensor, *, text_mask: Tensor | None = None, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Encode every label of every clip once.

        Shapes: text: [B, L, T, text width]; frames: [B, F, image width]; masks: [B, L, T] and [B, F] bool, False on
        padding. Returns [B, L, D].
        """
        batch, labels, tokens, _ = text.shape
        projected_frames = self.image_proj(frames)
        if self.config.head == "pooled":
            projected_frames = projected_frames + self._frame_positions(projected_frames)
        # The labels' tokens of a clip stand in one row: no frame is repeated for a label.
        queries = self.text_proj(text).view(batch, labels * tokens, -1)
        fused = self.fusion(queries, projected_frames, frame_mask).view(batch, labels, tokens, -1)
        return cast(Tensor, self.head(fused, projected_frames, text_mask, frame_mask))

    def _start_aligned(self) -> None:
        """Start both projections equal, and keys equal to queries: what the encoders aligned is found at once."""
        shapes = {name: tensor.shape for name, tensor in self.text_proj.state_dict().items()}
        if shapes == {name: tensor.shape for name, tensor in self.image_proj.state_dict().items()}:
            self.image_proj.load_state_dict(self.text_proj.state_dict())
        attention = self.fusion.attention
        attention.keys.load_state_dict(attention.queries.state_dict())

    def _frame_positions(self, frames: Tensor) -> Tensor:
        """Sines and cosines of a frame's place in time, the same for all tokens of a frame: [F, D]."""
        width = frames.shape[-1]
        time = torch.arange(frames.shape[1], device=frames.device) // self.config.tokens_per_frame
        rates = torch.exp(torch.arange(0, width, 2, device=frames.device) * (-math.log(10000.0) / width))
        angles = time.unsqueeze(-1) * rates
        return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :width].to(frames.dtype)


class FlattenHead(nn.Module):
    """All fused tokens and projected frames in one long row, through an MLP (the published head)."""

    def __init__(self, width: int, text_tokens: int, frames: int) -> None:
        super().__init__()
        self.text_tokens, self.frames = text_tokens, frames
        self.mlp = MLP((text_tokens + frames) * width, 4 * width, width)

    def forward(
        self, fused: Tensor, frames: Tensor, text_mask: Tensor | None = None, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Shapes: fused: [B, L, T, D]; frames: [B, F, D]. Masked or absent text tokens count as zeros."""
        if frames.shape[1] != self.frames or fused.shape[2] > self.text_tokens:
            raise ValueError(
                f"the flatten head was built for {self.text_tokens} text tokens and {self.frames} frames, "
                f"got {fused.shape[2]} and {frames.shape[1]}"
            )
        if text_mask is not None:
            fused = fused * text_mask.unsqueeze(-1)
        if frame_mask is not None:
            frames = frames * frame_mask.unsqueeze(-1)
        fused = F.pad(fused, (0, 0, 0, self.text_tokens - fused.shape[2]))
        # The first layer of [text; frames] is a sum of two products: the frames' one is computed once a clip.
        text_weight, frame_weight = self.mlp.fc1.weight.split([fused.shape[2] * fused.shape[3], frames[0].numel()], 1)
        hidden = F.linear(fused.flatten(2), text_weight, self.mlp.fc1.bias)
        hidden = hidden + F.linear(frames.flatten(1), frame_weight).unsqueeze(1)
        vectors: Tensor = self.mlp.fc2(F.gelu(hidden))
        return vectors


class PooledHead(nn.Module):
    """The label's own first token, its attention-pooled tokens and the attention-pooled frames, through an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.text_pool = nn.Linear(width, 1)
        self.frame_pool = nn.Linear(width, 1)
        self.mlp = MLP(3 * width, 4 * width, width)

    def forward(
        self, fused: Tensor, frames: Tensor, text_mask: Tensor | None = None, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Shapes: fused: [B, L, T, D]; frames: [B, F, D]; masks: [B, L, T] and [B, F]. Returns [B, L, D]."""
        # Token 0 is <s>; the label's words follow it, then the description.
        own = fused[:, :, 1]
        text = _attention_pool(fused, self.text_pool(fused), text_mask)
        clip = _attention_pool(frames, self.frame_pool(frames), frame_mask)
        vectors: Tensor = self.mlp(torch.cat([own, text, clip.unsqueeze(1).expand_as(own)], dim=-1))
        return vectors


def _attention_pool(tokens: Tensor, logits: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of tokens `[..., N, D]` weighted by the softmax of their logits `[..., N, 1]`: `[..., D]`."""
    if mask is not None:
        # Finite, so that a padded label's row, which has no token at all, stays finite too.
        logits = logits.masked_fill(~mask.unsqueeze(-1), torch.finfo(logits.dtype).min)
    return (logits.softmax(-2) * tokens).sum(-2)
