"""The fusion block, in which one sequence queries another, and the small networks around it."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lr2ppo.ops.packing import Rows


class MLP(nn.Module):
    """Two linear layers with a GELU between them: `[..., inputs] -> [..., outputs]`."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return output


class ResidualMLP(nn.Module):
    """A linear map plus an MLP of its normalized output: `[..., inputs] -> [..., width]`."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        output: Tensor = x + self.mlp(self.norm(x))
        return output


def fixed_bias(layer: nn.Linear) -> nn.Linear:
    """Freeze the bias of a layer before a softmax: it shifts all logits equally and changes nothing.

    Its gradient would be rounding noise, which AdamW would amplify.
    """
    layer.bias.requires_grad_(False)
    return layer


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Embed positions as sines and cosines of falling frequencies: `[...] -> [..., width]` (Vaswani et al. 2017)."""
    rates = torch.exp(torch.arange(0, width, 2, device=positions.device) * (-math.log(10000.0) / width))
    angles = positions.unsqueeze(-1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., :width]


class Score(nn.Linear):
    """Score each vector: `[..., D] -> [...]`.

    Computed in the weights' precision: scores that bfloat16 rounds to the same value could not be ordered.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return torch.squeeze_copy(super().forward(x.to(self.weight.dtype)), -1)


class CrossAttention(nn.Module):
    """Multi-head attention of queries `x [B, Q, D]` over a context `y [B, K, D]`; `mask [B, K]` is False on padding.

    `published` is what the published weights were trained with: logits are not scaled before the softmax, and the
    attended values are divided by sqrt(D), the full width. `scaled` is standard attention.
    """

    def __init__(self, width: int, heads: int, attention: Literal["published", "scaled"]) -> None:
        super().__init__()
        self.heads = heads
        self.published = attention == "published"
        self.queries = nn.Linear(width, width)
        self.keys = fixed_bias(nn.Linear(width, width))
        self.values = nn.Linear(width, width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None, packing: Rows | None = None) -> Tensor:
        """Shapes: x: [B, Q, D], or packed [N, D]; y: [B, K, D]; mask: [B, K]. Returns as x."""
        queries = self.queries(x)
        if packing is not None:
            queries = packing.clip_rows(queries)
        attended = F.scaled_dot_product_attention(
            self._split(queries),
            self._split(self.keys(y)),
            self._split(self.values(y)),
            attn_mask=None if mask is None else mask[:, None, None, :],
            scale=1.0 if self.published else None,
        )
        attended = attended.transpose(1, 2).flatten(2)
        if packing is not None:
            attended = packing.from_clip_rows(attended)
        if self.published:
            attended = attended / math.sqrt(x.shape[-1])
        projected: Tensor = self.projection(attended)
        return projected

    def _split(self, x: Tensor) -> Tensor:
        """`[B, N, D] -> [B, heads, N, D / heads]`."""
        heads: Tensor = x.unflatten(-1, (self.heads, -1))
        return heads.transpose(1, 2)


class FusionBlock(nn.Module):
    """Cross-attention from `x` to `y`, then a feed-forward network, both residual, then a LayerNorm."""

    def __init__(self, width: int, heads: int, attention: Literal["published", "scaled"], dropout: float) -> None:
        super().__init__()
        self.norm_x = nn.LayerNorm(width)
        self.norm_y = nn.LayerNorm(width)
        self.attention = CrossAttention(width, heads, attention)
        self.norm_ffn = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width)
        )
        self.dropout = nn.Dropout(dropout)
        self.norm_out = nn.LayerNorm(width)

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None, packing: Rows | None = None) -> Tensor:
        """Shapes: x: [B, Q, D], or packed [N, D]; y: [B, K, D]; mask: [B, K] bool, False on padding. Returns as x."""
        x = x + self.dropout(self.attention(self.norm_x(x), self.norm_y(y), mask, packing))
        x = x + self.dropout(self.ffn(self.norm_ffn(x)))
        fused: Tensor = self.norm_out(x)
        return fused
