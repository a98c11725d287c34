"""Distillation brings the reward model's order into the ranker, on clips without annotation."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lr2ppo.config.load import load_config
from lr2ppo.distributed.processes import Processes
from lr2ppo.stages import distill
from tests.stages.test_stages import PRESET, Overrides, rows, run_pointwise, run_reward


def run_distill(processes: Processes, overrides: list[str]) -> Path:
    settings = ["train.epochs=8", "train.clips_per_batch=4", "train.learning_rate=2e-3", "data.frames=3", "name=a"]
    config = load_config(PRESET / "distill.yaml", "distill", [*settings, *overrides])
    torch.manual_seed(config.seed)
    distill.train(config, processes, fresh=False)
    return config.logs


@pytest.mark.slow
def test_a_ranker_learns_the_order_of_the_reward_model(alone: Processes, tiny_overrides: Overrides) -> None:
    run_pointwise(alone, tiny_overrides())
    run_reward(alone, tiny_overrides())
    found = rows(run_distill(alone, tiny_overrides()), "distill")
    assert found[0]["validation/ndcg"] < 0.7
    assert found[-1]["validation/ndcg"] > 0.95
    assert found[0]["step"] == 0
    assert found[-1]["train/agreement"] > 0.95


@pytest.mark.slow
def test_a_run_that_finds_nothing_better_keeps_the_ranker_it_started_from(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    run_pointwise(alone, tiny_overrides())
    run_reward(alone, tiny_overrides())
    logs = run_distill(alone, tiny_overrides("train.learning_rate=0", "train.epochs=1"))
    before, after = (load_file(logs / stage / "a" / "best" / "model.safetensors") for stage in ("pointwise", "distill"))
    assert all(torch.equal(before[name], after[name]) for name in before)
