"""The models on top of the label encoder: the ranker scores labels, the partial-order model scores orders of labels."""

from typing import Any

import torch
from torch import Tensor, nn

from lr2ppo.config.schema import ModelConfig
from lr2ppo.models.context import CONTEXTS
from lr2ppo.models.encoder import LabelEncoder
from lr2ppo.models.layers import FusionBlock, Score

SLOTS = 4


class RelevanceRanker(nn.Module):
    """A relevance score for each label of a clip: stage 1's model, and the actor of stage 3."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = LabelEncoder(config)
        self.context = CONTEXTS[config.context](config) if config.context != "none" else None
        self.score = Score(config.width)

    @property
    def reads_whole_lists(self) -> bool:
        """Whether a label's score depends on the others, so that batches must hold all labels of their clips."""
        return self.context is not None

    def forward(self, text: Tensor, frames: Tensor, **masks: Any) -> Tensor:
        """Score every label; arguments as of `LabelEncoder.forward`. Returns scores [B, L]."""
        vectors = self.encoder(text, frames, **masks)
        scores: Tensor = self.score(vectors)
        if self.context is not None:
            tokens = masks.get("text_mask")
            labels = torch.ones_like(scores, dtype=torch.bool) if tokens is None else tokens.any(-1)
            scores = self.score(self.context(vectors, scores, labels))
        return scores


class PartialOrderModel(nn.Module):
    """Score a sequence of a clip's labels, read in the given order (paper sections 3.3 and 3.4).

    The reward model reads four slots: the pair as given, then the proposed order. The critic reads two: the pair. With
    `residual`, the reward of an order has half the score difference of its two labels added, by a score that starts as
    the ranker's.
    """

    reads_whole_lists = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = LabelEncoder(config)
        self.slot_embedding = nn.Embedding(SLOTS, config.width)
        self.block = FusionBlock(config.width, config.heads, config.attention, config.dropout)
        self.score = Score(config.width)
        self.label_score = Score(config.width) if config.residual else None

    def forward(self, text: Tensor, frames: Tensor, order: Tensor, **masks: Any) -> Tensor:
        """Score one order per clip, `[B, S]` label positions -> `[B]`, or N, `[B, N, S]` -> `[B, N]`; S <= 4.

        Other arguments as of `LabelEncoder.forward`.
        """
        vectors = self.encoder(text, frames, **masks)
        if order.dim() == 2:
            return torch.squeeze_copy(self.score_orders(vectors, order.unsqueeze(1)), 1)
        return self.score_orders(vectors, order)

    def score_orders(self, vectors: Tensor, order: Tensor) -> Tensor:
        """Score orders of encoded labels: vectors [B, L, D], order [B, N, S] -> [B, N]."""
        clips = torch.arange(len(order), device=order.device)[:, None, None]
        slots = vectors[clips, order] + self.slot_embedding.weight[: order.shape[-1]]
        slots = slots.flatten(0, 1)
        # Only the last slot is read, so only its query is computed.
        last = self.block(slots[:, -1:], slots)
        rewards: Tensor = torch.view_copy(self.score(last), order.shape[:2])
        if self.label_score is None or order.shape[-1] < SLOTS:
            return rewards
        scores: Tensor = self.label_score(vectors)
        first, second = scores[clips, order[..., -2:]].unbind(-1)
        return rewards + (first - second) / 2
