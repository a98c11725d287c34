"""Label relevance ranking by reinforcement learning (LR2PPO, ECCV 2024)."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lr2ppo.version import __version__

if TYPE_CHECKING:
    from lr2ppo.errors import UserError
    from lr2ppo.inference.labels import RankedLabel
    from lr2ppo.inference.ranker import LabelRanker, Preference, Query

__all__ = ["LabelRanker", "Preference", "Query", "RankedLabel", "UserError", "__version__"]
_MODULES = {"RankedLabel": "inference.labels", "UserError": "errors"}

# Read by torch: put large tensors in huge pages, or a step's gigabytes of gradients cost seconds of page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def __getattr__(name: str) -> Any:
    """Import a public name on first use: torch and the encoders' libraries take seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'inference.ranker')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
