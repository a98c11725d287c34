"""Train all stages on a tiny world, under torchrun or not: `parallel_training.py LOGS DATA STRATEGY ...`.

Runs of one process are called `one` and have batches of 8 clips; runs of two are named after their strategy and have 4
clips per process. Later stages start from the runs called `one`.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from lr2ppo.config.load import load_config
from lr2ppo.distributed.processes import Processes, join_processes
from lr2ppo.runs.stages import STAGES
from lr2ppo.training import learner
from tests.conftest import REPOSITORY

TRAIN: dict[str, Callable[[Any, Processes, bool], None]] = {
    name: import_module(stage.module).train for name, stage in STAGES.items()
}
OVERRIDES = {
    "pointwise": ["model.dropout=0", "train.max_labels=6", "train.evaluate_every=100"],
    "finetune": ["ranker=one", "train.epochs=3", "train.pairs_per_clip=4", "train.evaluate_every=100", "loss.name=dpo"],
    "reward": ["model.dropout=0", "ranker=one", "train.epochs=3", "train.pairs_per_clip=4", "train.evaluate_every=100"],
    "distill": ["ranker=one", "reward=one", "train.pairs_per_clip=7", "train.evaluate_every=100"],
    # The published policy; others are trained with `policy.name` of `POLICIES`, as runs called POLICY-one and so on.
    "ppo": [
        *("ranker=pointwise/one", "reward=one", "train.pairs_per_clip=7", "train.evaluate_every=100"),
        *("policy.name=partial_order", "train.actor.learning_rate=3e-4"),
    ],
}

POLICIES = ("exact", "plackett_luce")


def train_all(processes: Processes, logs: Path, data: Path, strategy: str) -> None:
    """Train 12 or more steps of each stage; in batches of pairs, processes may have unequal numbers."""
    torch.set_num_threads(1)
    name = "one" if processes.world_size == 1 else strategy
    clips = 8 // processes.world_size
    common = [f"logs={logs}", f"data.root={data}", "data.frames=3", f"name={name}", f"compute.strategy={strategy}"]
    common += ["train.epochs=5", f"train.clips_per_batch={clips}", "device=cpu"]
    for stage, train in TRAIN.items():
        config = load_config(REPOSITORY / "configs" / "mini" / f"{stage}.yaml", stage, [*common, *OVERRIDES[stage]])
        torch.manual_seed(config.seed)
        train(config, processes, False)
    # In bfloat16, every matrix with a copy.
    learner.COPIED = 0
    own = [*common, *OVERRIDES["pointwise"], f"name=bf16-{name}", "compute.precision=bf16"]
    config = load_config(REPOSITORY / "configs" / "mini" / "pointwise.yaml", "pointwise", own)
    torch.manual_seed(config.seed)
    TRAIN["pointwise"](config, processes, False)
    for policy in POLICIES:
        own = [f"policy.name={policy}", f"name={policy}-{name}", "train.batches_per_rollout=2", "train.passes=2"]
        config = load_config(REPOSITORY / "configs" / "mini" / "ppo.yaml", "ppo", [*common, *OVERRIDES["ppo"], *own])
        torch.manual_seed(config.seed)
        TRAIN["ppo"](config, processes, False)


if __name__ == "__main__":
    with join_processes("cpu") as joined:
        for wanted in sys.argv[3:]:
            train_all(joined, Path(sys.argv[1]), Path(sys.argv[2]), wanted)
