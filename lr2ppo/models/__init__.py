"""The models: a trunk that encodes each label once, a ranker and a partial-order model on top of it.

Imports: config, tensors, ops. Only `weights` and `published` use files.
"""

from lr2ppo.models.encoder import LabelEncoder
from lr2ppo.models.rankers import PartialOrderModel, RelevanceRanker

__all__ = ["LabelEncoder", "PartialOrderModel", "RelevanceRanker"]
