"""Label relevance ranking by reinforcement learning (LR2PPO, ECCV 2024)."""

__version__ = "0.1.0"
