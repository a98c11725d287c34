"""The pointwise ranker of stage 1, which stage 3 improves as its actor."""

import torch
from torch import Tensor, nn

from lr2ppo.config import ModelConfig
from lr2ppo.models.label_encoder import LabelEncoder


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
