"""Frozen encoders that turn texts and frames into the features all stages read."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lr2ppo.encoders.image import ImageEncoder
    from lr2ppo.encoders.text import TextEncoder

__all__ = ["ImageEncoder", "TextEncoder"]
_MODULES = {"ImageEncoder": "image", "TextEncoder": "text"}


def __getattr__(name: str) -> Any:
    """Import an exported name on first use: the encoders' libraries take seconds to load."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
