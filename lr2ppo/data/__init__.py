"""Clips, their features, and the batches that every stage reads.

Imports: distributed (signals), config, files, tensors.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lr2ppo.data.annotations import Clip, read_clips, write_clips
    from lr2ppo.data.dataset import ClipBatch, ClipDataset, ClipRequest
    from lr2ppo.data.features.store import FeatureStore
    from lr2ppo.data.features.writer import FeatureWriter

__all__ = [
    "Clip",
    "ClipBatch",
    "ClipDataset",
    "ClipRequest",
    "FeatureStore",
    "FeatureWriter",
    "read_clips",
    "write_clips",
]
_MODULES = {
    **dict.fromkeys(("Clip", "read_clips", "write_clips"), "annotations"),
    **dict.fromkeys(("ClipBatch", "ClipDataset", "ClipRequest"), "dataset"),
    "FeatureStore": "features.store",
    "FeatureWriter": "features.writer",
}


def __getattr__(name: str) -> Any:
    """Import an exported name on first use: some need torch, which takes seconds to load."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
