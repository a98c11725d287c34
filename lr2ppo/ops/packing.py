"""Pack padded text into one row of its valid tokens, so that nothing is computed for padding."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, Self, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

# Sizes of a steady packing are multiples of it.
STEP = 256
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def _uncompiled(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Exclude a function with data-dependent result sizes from compilation, without torch's graph-break warning."""

    @wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if torch.compiler.is_compiling():
            # Not a decorator: it would load the compiler in every process, which takes 2 seconds.
            disabled: Callable[Arguments, Result] = torch.compiler.disable(function)
            return disabled(*args, **kwargs)
        return function(*args, **kwargs)

    return called


@dataclass(frozen=True)
class Packing:
    """The layout of padded text packed into a row of its N valid tokens `[N, D]`, by clip, then by label.

    mask [B, L, T] is False on padding; places [N] are the tokens' positions in the flattened mask; clip_places [N] are
    their positions in clips of `longest` tokens each, `[B * longest]`. A `steady` packing has one of a few
    sizes, for computations that are prepared for each size: tokens that it adds are at the position after the last.
    """

    mask: Tensor
    places: Tensor
    clip_places: Tensor
    longest: int
    steady: bool = False

    @classmethod
    @_uncompiled
    def of(cls, mask: Tensor, steady: bool = False) -> Self | None:
        """The packing of text with a mask `[B, L, T]`; None if nothing is padded."""
        places = mask.flatten().nonzero().squeeze(1)
        if len(places) == mask.numel():
            return None
        lengths = mask.sum((1, 2))
        longest = _rounded(int(lengths.max()), steady)
        clips = places // mask[0].numel()
        first = lengths.cumsum(0) - lengths
        within_clip = torch.arange(len(places), device=mask.device) - first[clips]
        more = _rounded(len(places), steady) - len(places)
        clip_places = F.pad(clips * longest + within_clip, (0, more), value=len(mask) * longest)
        return cls(mask, F.pad(places, (0, more), value=mask.numel()), clip_places, longest, steady)

    def pack(self, padded: Tensor) -> Tensor:
        """`[B, L, T, D] -> [N, D]`."""
        return self._take(padded.flatten(0, 2), self.places)

    def unpack(self, tokens: Tensor) -> Tensor:
        """`[N, D] -> [B, L, T, D]`, zeros on padding."""
        return self._put(tokens, self.places, self.mask.numel()).view(*self.mask.shape, tokens.shape[1])

    def clip_rows(self, tokens: Tensor) -> Tensor:
        """`[N, D] -> [B, longest, D]`: one row of tokens per clip, padded with zeros."""
        clips = len(self.mask)
        return self._put(tokens, self.clip_places, clips * self.longest).view(clips, self.longest, tokens.shape[1])

    def from_clip_rows(self, rows: Tensor) -> Tensor:
        """`[B, longest, D] -> [N, D]`."""
        return self._take(rows.flatten(0, 1), self.clip_places)

    def label_tokens(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Each label's token at position `places [B, L]`, zeros on padding: `[N, D] -> [B, L, D]`."""
        at = places.unsqueeze(-1)
        rows = self.mask.flatten().cumsum(0).view_as(self.mask).gather(2, at).squeeze(-1) - 1
        found: Tensor = tokens.index_select(0, rows.clamp(min=0).flatten()).unflatten(0, rows.shape)
        return found * self.mask.gather(2, at)

    def label_sums(self, tokens: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of each label's tokens, with weights `[N, 1]`: `[N, D] -> [B, L, D]`."""
        if self.steady:
            padded_sums: Tensor = self.unpack(tokens * weights.to(tokens.dtype)).sum(2)
            return padded_sums
        lengths = self.mask.sum(-1).flatten()
        # Adds up tokens in order in one pass, which is deterministic on a GPU too.
        sums: Tensor = F.embedding_bag(
            torch.arange(len(tokens), device=tokens.device),
            tokens,
            offsets=lengths.cumsum(0) - lengths,
            mode="sum",
            per_sample_weights=weights.squeeze(1).to(tokens.dtype),
        )
        return sums.view(*self.mask.shape[:2], tokens.shape[1])

    def _take(self, rows: Tensor, places: Tensor) -> Tensor:
        return rows.index_select(0, places.clamp(max=len(rows) - 1) if self.steady else places)

    def _put(self, tokens: Tensor, places: Tensor, size: int) -> Tensor:
        rows = tokens.new_zeros(size + self.steady, tokens.shape[1])
        return rows.index_copy(0, places, tokens)[:size]


def _rounded(size: int, steady: bool) -> int:
    return -(-size // STEP) * STEP if steady else size


@dataclass(frozen=True)
class Padding:
    """The interface of `Packing` for text that stays padded, `N = B * L * T`: exported graphs need static sizes.

    mask [B, L, T] is False on padding.
    """

    mask: Tensor

    def pack(self, padded: Tensor) -> Tensor:
        return padded.flatten(0, 2)

    def unpack(self, tokens: Tensor) -> Tensor:
        padded: Tensor = tokens.unflatten(0, self.mask.shape)
        return padded * self.mask.unsqueeze(-1)

    def clip_rows(self, tokens: Tensor) -> Tensor:
        clips, labels, length = self.mask.shape
        rows: Tensor = tokens.unflatten(0, (clips, labels * length))
        return rows

    def from_clip_rows(self, rows: Tensor) -> Tensor:
        return rows.flatten(0, 1)

    def label_tokens(self, tokens: Tensor, places: Tensor) -> Tensor:
        at = places[..., None, None].expand(-1, -1, 1, tokens.shape[-1])
        return self.unpack(tokens).gather(2, at).squeeze(2)

    def label_sums(self, tokens: Tensor, weights: Tensor) -> Tensor:
        return self.unpack(tokens * weights.to(tokens.dtype)).sum(2)


Rows = Packing | Padding


def lay_out(mask: Tensor) -> Rows | None:
    """Choose the layout of text with a mask `[B, L, T]`; None if nothing is padded."""
    return Padding(mask) if _is_exporting() else Packing.of(mask)


def _is_exporting() -> bool:
    if hasattr(torch.compiler, "is_exporting"):
        return torch.compiler.is_exporting()
    # In torch 2.6, tracing without Dynamo is an export.
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
