"""The mini benchmark: generated clips of coloured shapes in LRMovieNet's layout, with real JPEG frames."""

from lr2ppo.data.mini.folder import SIZES, WORLDS, write_mini, write_table
from lr2ppo.data.mini.pairs import write_regimes

__all__ = ["SIZES", "WORLDS", "write_mini", "write_regimes", "write_table"]
