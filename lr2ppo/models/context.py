"""Context models: what a ranker adds to a label's vector after it has seen the other labels of the clip.

Each takes vectors [B, L, D], the scores [B, L] of these vectors alone, which give an initial order, and a mask [B, L],
False on padding, and returns vectors [B, L, D]. It starts as the identity: its last layer starts at 0. Labels in
another order give the same vectors in that order, and padding changes nothing. Only `DLCM` must read labels of equal
scores, such as a label given twice, in the order given.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lr2ppo.config.schema import ModelConfig
from lr2ppo.models.layers import FusionBlock, sinusoids

LAYERS = 2
INDUCED_POINTS = 20


class DLCM(nn.Module):
    """Read the labels from the lowest score to the highest by a GRU; its last state is the context of all of them.

    Deep listwise context model (Ai et al. 2018).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.gru = nn.GRU(config.width, config.width, batch_first=True)
        self.local = nn.Linear(config.width, config.width)
        self.out = starting_at_0(nn.Linear(config.width, config.width))

    def forward(self, vectors: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        # Padding comes last, so that no state of a label depends on it.
        order = scores.detach().masked_fill(~mask, torch.inf).argsort(dim=1, stable=True)
        states, _ = self.gru(_take(self.norm(vectors), order))
        last = states.gather(1, (mask.sum(1) - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[-1]))
        own = _take(states, order.argsort(dim=1))
        added: Tensor = self.out(own * torch.tanh(self.local(last)))
        return vectors + added


class GSF(nn.Module):
    """Read each label in all groups of two with another label, as first and as second; the groups' means count.

    Groupwise scoring functions (Ai et al. 2019) with groups of two.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.first = nn.Linear(config.width, config.width)
        self.second = nn.Linear(config.width, config.width, bias=False)
        self.out = starting_at_0(nn.Linear(2 * config.width, config.width))

    def forward(self, vectors: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        normalized = self.norm(vectors)
        # The first layer over both labels of a group is a sum of one layer for each: [B, first, second, D].
        groups = F.gelu(self.first(normalized).unsqueeze(2) + self.second(normalized).unsqueeze(1))
        others = mask.unsqueeze(1) & mask.unsqueeze(2) & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
        weights = (others / others.sum(2, keepdim=True).clamp(min=1)).to(groups.dtype)
        as_first = torch.einsum("bij,bijd->bid", weights, groups)
        as_second = torch.einsum("bij,bjid->bid", weights, groups)
        added: Tensor = self.out(torch.cat([as_first, as_second], dim=-1))
        return vectors + added


class SetRank(nn.Module):
    """Read all labels by self-attention, without their order (Pang et al. 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_block(config) for _ in range(LAYERS))
        self.out = starting_at_0(nn.Linear(config.width, config.width))

    def forward(self, vectors: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        added: Tensor = self.out(_attend(self.blocks, vectors, at_least_one(mask)))
        return vectors + added


class InducedSetRank(nn.Module):
    """Read all labels by self-attention through a few learned points (SetRank with IMSAB, Pang et al. 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.points = nn.Parameter(torch.randn(LAYERS, INDUCED_POINTS, config.width))
        self.to_points = nn.ModuleList(_block(config) for _ in range(LAYERS))
        self.from_points = nn.ModuleList(_block(config) for _ in range(LAYERS))
        self.out = starting_at_0(nn.Linear(config.width, config.width))

    def forward(self, vectors: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        seen, mask = vectors, at_least_one(mask)
        for points, to_points, from_points in zip(self.points, self.to_points, self.from_points, strict=True):
            summary = to_points(points.expand(vectors.shape[0], -1, -1), seen, mask)
            seen = from_points(seen, summary)
        added: Tensor = self.out(seen)
        return vectors + added


class PRM(nn.Module):
    """Read all labels by self-attention, with their ranks in the initial order (Pei et al. 2019)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rank = nn.Linear(config.width, config.width)
        self.blocks = nn.ModuleList(_block(config) for _ in range(LAYERS))
        self.out = starting_at_0(nn.Linear(config.width, config.width))

    def forward(self, vectors: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        # How many labels have a higher score; equal scores share a rank.
        ranks = ((scores.unsqueeze(1) > scores.unsqueeze(2)) & mask.unsqueeze(1)).sum(-1)
        ranked = vectors + self.rank(sinusoids(ranks, vectors.shape[-1]).to(vectors.dtype))
        added: Tensor = self.out(_attend(self.blocks, ranked, at_least_one(mask)))
        return vectors + added


class RankFormer(nn.Module):
    """Read all labels and a token of the whole list by self-attention; each label's vector gets its own and the list's.

    RankFormer (Buyl et al. 2023), without its loss on the list's token: our lists have no grade as a whole.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.list_token = nn.Parameter(torch.randn(1, 1, config.width))
        self.blocks = nn.ModuleList(_block(config) for _ in range(LAYERS))
        self.out = starting_at_0(nn.Linear(2 * config.width, config.width))

    def forward(self, vectors: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        tokens = torch.cat([self.list_token.expand(vectors.shape[0], -1, -1).to(vectors.dtype), vectors], dim=1)
        seen = _attend(self.blocks, tokens, F.pad(mask, (1, 0), value=True))
        own, whole = seen[:, 1:], seen[:, :1]
        added: Tensor = self.out(torch.cat([own, whole.expand_as(own)], dim=-1))
        return vectors + added


# The values of `model.context`, besides none.
CONTEXTS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "dlcm": DLCM,
    "gsf": GSF,
    "setrank": SetRank,
    "setrank_induced": InducedSetRank,
    "prm": PRM,
    "rankformer": RankFormer,
}


def starting_at_0(layer: nn.Linear) -> nn.Linear:
    """Set a layer's weights to 0, so that what it is added to is unchanged at first."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def at_least_one(mask: Tensor) -> Tensor:
    """Let the clips of a batch that have no label at all attend to their padding: a softmax over nothing is NaN."""
    return mask | ~mask.any(1, keepdim=True)


def _block(config: ModelConfig) -> FusionBlock:
    return FusionBlock(config.width, config.heads, "scaled", config.dropout)


def _attend(blocks: nn.ModuleList, x: Tensor, mask: Tensor) -> Tensor:
    """Self-attention through all blocks: x [B, N, D], mask [B, N]."""
    for block in blocks:
        x = block(x, x, mask)
    return x


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Reorder labels: x [B, L, D], order [B, L]."""
    return x.gather(1, order.unsqueeze(-1).expand_as(x))
