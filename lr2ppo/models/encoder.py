"""The trunk that all models share: it encodes a clip's labels, description and frames into one vector per label."""

from typing import cast

import torch
from torch import Tensor, nn

from lr2ppo.config.schema import ModelConfig
from lr2ppo.models.layers import MLP, FusionBlock, ResidualMLP, fixed_bias, sinusoids
from lr2ppo.ops.packing import Rows, lay_out


class LabelEncoder(nn.Module):
    """Encode each label: its text tokens query the clip's frames, and a head turns the fused tokens into one vector.

    The published head, `flatten`, takes at most `text_tokens` tokens and exactly `frames` frames; `pooled` takes any
    number of both.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
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
        self,
        text: Tensor,
        frames: Tensor,
        *,
        text_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
        label_span: Tensor | None = None,
        packing: Rows | None = None,
    ) -> Tensor:
        """Encode every label of every clip once.

        Shapes: text: [B, L, T, text width]; frames: [B, F, image width]; masks: [B, L, T] and [B, F] bool, False on
        padding (a label without tokens pads the list); label_span: [B, L, 2] long, the start and stop of the label's
        words among its tokens (None: after the first token, as in RoBERTa's `<s> label`); packing: the layout of the
        mask's tokens, if it is known. Returns [B, L, D].
        """
        projected_frames = self.image_proj(frames)
        if self.config.head == "pooled":
            projected_frames = projected_frames + self._frame_positions(projected_frames)
        # All label tokens of a clip form one row without padding, so that frames are not repeated per label.
        if packing is None and text_mask is not None:
            packing = lay_out(text_mask)
        tokens = text.flatten(1, 2) if packing is None else packing.pack(text)
        fused = self.fusion(self.text_proj(tokens), projected_frames, frame_mask, packing)
        if packing is None:
            fused = fused.unflatten(1, text.shape[1:3])
        if isinstance(self.head, FlattenHead):
            return cast(Tensor, self.head(fused, projected_frames, packing, frame_mask))
        if label_span is None:
            # Left to itself, the ONNX export of torch 2.6 would fill with floats.
            first = torch.full(text.shape[:2], min(1, text.shape[2] - 1), dtype=torch.long, device=text.device)
        else:
            first = label_span[..., 0]
        return cast(Tensor, self.head(fused, projected_frames, first, packing, frame_mask))

    def _start_aligned(self) -> None:
        """Initialize both projections equal, and keys equal to queries, to start from the encoders' alignment."""
        shapes = {name: tensor.shape for name, tensor in self.text_proj.state_dict().items()}
        if shapes == {name: tensor.shape for name, tensor in self.image_proj.state_dict().items()}:
            self.image_proj.load_state_dict(self.text_proj.state_dict())
        attention = self.fusion.attention
        attention.keys.load_state_dict(attention.queries.state_dict())

    def _frame_positions(self, frames: Tensor) -> Tensor:
        """Sinusoidal embeddings of frame positions in time, the same for all tokens of a frame: [F, D]."""
        time = torch.arange(frames.shape[1], device=frames.device) // self.config.tokens_per_frame
        return sinusoids(time, frames.shape[-1]).to(frames.dtype)


class FlattenHead(nn.Module):
    """An MLP over all fused tokens and projected frames, concatenated (the published head)."""

    def __init__(self, width: int, text_tokens: int, frames: int) -> None:
        super().__init__()
        self.text_tokens, self.frames = text_tokens, frames
        self.mlp = MLP((text_tokens + frames) * width, 4 * width, width)

    def forward(
        self, fused: Tensor, frames: Tensor, packing: Rows | None = None, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Shapes: fused: [B, L, T, D], or packed [N, D]; frames: [B, F, D]; frame_mask: [B, F]. Returns [B, L, D].

        Padding and missing text tokens are zeros.
        """
        if packing is not None:
            fused = packing.unpack(fused)
        clips, labels, tokens, width = fused.shape
        if frames.shape[1] != self.frames or tokens > self.text_tokens:
            raise ValueError(
                f"the flatten head was built for {self.text_tokens} text tokens and {self.frames} frames, "
                f"got {tokens} and {frames.shape[1]}"
            )
        if frame_mask is not None:
            frames = frames * frame_mask.unsqueeze(-1)
        absent = fused.new_zeros(clips, labels, self.text_tokens - tokens, width)
        # Frames are repeated for each label: splitting the weight in two would cost a copy to join its gradient.
        row = torch.cat([fused, absent, frames.unsqueeze(1).expand(-1, labels, -1, -1)], dim=2)
        vectors: Tensor = self.mlp(row.flatten(2))
        return vectors


class PooledHead(nn.Module):
    """An MLP over the first token of the label's words, its attention-pooled tokens and the pooled frames."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.text_pool = fixed_bias(nn.Linear(width, 1))
        self.frame_pool = fixed_bias(nn.Linear(width, 1))
        self.mlp = MLP(3 * width, 4 * width, width)

    def forward(
        self,
        fused: Tensor,
        frames: Tensor,
        first: Tensor,
        packing: Rows | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """Shapes: fused: [B, L, T, D], or packed [N, D]; frames: [B, F, D]; first: [B, L] long, the first token of each
        label's words; frame_mask: [B, F]. Returns [B, L, D].
        """
        logits = self.text_pool(fused)
        if packing is None:
            own = fused.gather(2, first[..., None, None].expand(-1, -1, 1, fused.shape[-1])).squeeze(2)
            text = (logits.softmax(-2) * fused).sum(-2)
        else:
            weights = packing.pack(_masked_softmax(packing.unpack(logits), packing.mask))
            own, text = packing.label_tokens(fused, first), packing.label_sums(fused, weights)
        clip = (_masked_softmax(self.frame_pool(frames), frame_mask) * frames).sum(-2)
        vectors: Tensor = self.mlp(torch.cat([own, text, clip.unsqueeze(1).expand_as(own)], dim=-1))
        return vectors


def _masked_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the N of logits `[..., N, 1]`; where `mask [..., N]` is False, the weight is 0."""
    if mask is not None:
        # Finite, so that the row of a padded label, which has no tokens, stays finite too.
        logits = logits.masked_fill(~mask.unsqueeze(-1), torch.finfo(logits.dtype).min)
    return logits.softmax(-2)
