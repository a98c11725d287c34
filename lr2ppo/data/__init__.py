"""Clips, their features, and the batches that every stage reads.

Imports: distributed (signals), config, files, tensors.
"""


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
