"""Label relevance ranking by reinforcement learning (LR2PPO, ECCV 2024)."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lr2ppo.inference.ranker import LabelRanker, Preference, Query, RankedLabel

__all__ = ["LabelRanker", "Preference", "Query", "RankedLabel"]

# Read by torch: large tensors in huge pages, else a step's gigabytes of gradients cost seconds of page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def __getattr__(name: str) -> Any:
    """What ranks, imported where it is first asked for: torch and the encoders' libraries take seconds."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lr2ppo.inference import ranker

    return getattr(ranker, name)
