"""The models: a trunk that encodes each label once, a ranker and a judge of label orders on top of it."""

from lr2ppo.models.label_encoder import LabelEncoder
from lr2ppo.models.partial_order import PartialOrderModel
from lr2ppo.models.ranker import RelevanceRanker

__all__ = ["LabelEncoder", "PartialOrderModel", "RelevanceRanker"]
