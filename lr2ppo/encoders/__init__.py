"""Frozen encoders that turn texts and frames into the features all stages read."""

from lr2ppo.encoders.image import ImageEncoder
from lr2ppo.encoders.text import TextEncoder

__all__ = ["ImageEncoder", "TextEncoder"]
