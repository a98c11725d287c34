"""The pointwise ranker of stage 1, which stage 3 improves as its actor."""

import torch
from torch import Tensor, nn

from lr2ppo.config.schema import ModelConfig
from lr2ppo.models.encoder import LabelEncoder
from lr2ppo.models.layers import FusionBlock


class RelevanceRanker(nn.Module):
    """A relevance score for each label of a clip."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = LabelEncoder(config)
        self.score = nn.Linear(config.width, 1)

    def forward(
        self, text: Tensor, frames: Tensor, *, text_mask: Tensor | None = None, frame_mask: Tensor | None = None
    ) -> Tensor:
        """Shapes: text: [B, L, T, D]; frames: [B, F, D]; masks: [B, L, T], [B, F]. Returns scores [B, L]."""
        vectors = self.encoder(text, frames, text_mask=text_mask, frame_mask=frame_mask)
        # In the weights' own precision: scores that bfloat16 makes equal could not be ordered.
        with torch.autocast(vectors.device.type, enabled=False):
            scores = self.score(vectors.to(self.score.weight.dtype))
        return torch.squeeze_copy(scores, -1)


SLOTS = 4


class PartialOrderModel(nn.Module):
    """One number for a sequence of a clip's labels, read in the order given."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = LabelEncoder(config)
        self.slot_embedding = nn.Embedding(SLOTS, config.width)
        self.block = FusionBlock(config.width, config.heads, config.attention, config.dropout)
        self.score = nn.Linear(config.width, 1)

    def forward(
        self,
        text: Tensor,
        frames: Tensor,
        order: Tensor,
        *,
        text_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """Judge one order a clip, `[B, S]` label positions -> `[B]`, or N of them, `[B, N, S]` -> `[B, N]`; S <= 4.

        Shapes: text: [B, L, T, D]; frames: [B, F, D]; masks: [B, L, T], [B, F].
        """
        vectors = self.encoder(text, frames, text_mask=text_mask, frame_mask=frame_mask)
        if order.dim() == 2:
            return torch.squeeze_copy(self.judge(vectors, order.unsqueeze(1)), 1)
        return self.judge(vectors, order)

    def judge(self, vectors: Tensor, order: Tensor) -> Tensor:
        """Judge orders of labels already encoded: vectors [B, L, D], order [B, N, S] -> [B, N]."""
        clips = torch.arange(len(order), device=order.device)[:, None, None]
        slots = vectors[clips, order] + self.slot_embedding.weight[: order.shape[-1]]
        slots = slots.flatten(0, 1)
        # Only the last slot is read, so only its query is computed.
        last = self.block(slots[:, -1:], slots)
        # In the weights' own precision: rewards that bfloat16 makes equal could not be compared.
        with torch.autocast(last.device.type, enabled=False):
            judgement = self.score(last.to(self.score.weight.dtype))
        return torch.view_copy(judgement, order.shape[:2])
