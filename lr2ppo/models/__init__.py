"""The models: a trunk that encodes each label once, a ranker and a judge of label orders on top of it."""

from lr2ppo.models.encoder import LabelEncoder
from lr2ppo.models.rankers import PartialOrderModel, RelevanceRanker

__all__ = ["LabelEncoder", "PartialOrderModel", "RelevanceRanker"]
