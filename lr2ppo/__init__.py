"""Label relevance ranking by reinforcement learning (LR2PPO, ECCV 2024)."""

import os

# Read by torch: large tensors in huge pages, else a step's gigabytes of gradients cost seconds of page faults.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
