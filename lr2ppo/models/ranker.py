"""The pointwise ranker of stage 1, which stage 3 improves as its actor."""

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
        scores: Tensor = self.score(vectors).squeeze(-1)
        return scores
