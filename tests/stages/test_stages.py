"""Each stage learns what it should in a world with a known right answer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import PointwiseConfig, PPOConfig, RewardConfig
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.stages import pointwise, ppo, reward
from tests.conftest import REPOSITORY

Overrides = Callable[..., list[str]]
PRESET = REPOSITORY / "configs" / "mini"
# The published stage 3, at the rates of the preset.
PUBLISHED = (
    "ranker=pointwise/newest",
    "policy.name=partial_order",
    "train.passes=2",
    "train.evaluate_every=10",
    "train.standard_errors=0",
    "train.actor.learning_rate=3e-4",
)


def run_pointwise(processes: Processes, overrides: list[str], name: str = "a") -> PointwiseConfig:
    settings = ["train.epochs=6", "train.clips_per_batch=4", "train.max_labels=6", "train.learning_rate=2e-3"]
    config: PointwiseConfig = load_config(
        PRESET / "pointwise.yaml", "pointwise", [*overrides, f"name={name}", "data.frames=3", *settings]
    )
    torch.manual_seed(config.seed)
    pointwise.train(config, processes, fresh=False)
    return config


def run_reward(processes: Processes, overrides: list[str], name: str = "a") -> RewardConfig:
    settings = ["train.epochs=6", "train.clips_per_batch=4", "train.learning_rate=2e-3"]
    config: RewardConfig = load_config(
        PRESET / "reward.yaml", "reward", [*overrides, f"name={name}", "data.frames=3", *settings]
    )
    torch.manual_seed(config.seed)
    reward.train(config, processes, fresh=False)
    return config


def run_ppo(processes: Processes, overrides: list[str], name: str = "a") -> PPOConfig:
    config: PPOConfig = load_config(
        PRESET / "ppo.yaml", "ppo", [*PUBLISHED, "train.epochs=12", "data.frames=3", *overrides, f"name={name}"]
    )
    torch.manual_seed(config.seed)
    ppo.train(config, processes, fresh=False)
    return config


def rows(logs: Path, stage: str, name: str = "a") -> list[dict[str, float]]:
    text = (logs / stage / name / "metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_three_stages_turn_the_order_of_the_source_into_that_of_the_target(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    run_reward(alone, tiny_overrides())
    run_ppo(alone, tiny_overrides("loss.weighting=pair"))

    source_loss = [row["train/loss"] for row in rows(logs, "pointwise")]
    assert source_loss[-1] < 0.5 * source_loss[0]
    # The target's right order is the reverse of the source's: stage 1 ranks it as badly as possible.
    assert rows(logs, "pointwise")[-1]["validation/ndcg"] < 0.7
    assert rows(logs, "reward")[-1]["validation/pair_accuracy"] > 0.97
    curve = [row["validation/ndcg"] for row in rows(logs, "ppo")]
    assert curve[0] < 0.7
    assert curve[-1] > 0.95


def test_a_run_leaves_its_config_logs_events_and_weights(alone: Processes, tiny_overrides: Overrides) -> None:
    folder = run_pointwise(alone, tiny_overrides()).logs / "pointwise" / "a"
    assert load_config(folder / "config.yaml", "pointwise").model.text_width == 16
    assert "best so far" in (folder / "train.log").read_text(encoding="utf-8")
    assert list(folder.glob("events.out.tfevents.*"))
    assert {path.name for path in (folder / "best").iterdir()} == {"config.json", "model.safetensors"}
    assert (folder / "checkpoints" / "last" / "model.safetensors").is_file()
    assert json.loads((folder / "finished.json").read_text(encoding="utf-8"))["steps"] == 48


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    logs = run_pointwise(alone, tiny_overrides(), "first").logs
    run_pointwise(alone, tiny_overrides(), "again")
    run_pointwise(alone, tiny_overrides("seed=8"), "other")
    first, again, other = (
        load_file(logs / "pointwise" / name / "checkpoints" / "last" / "model.safetensors")
        for name in ("first", "again", "other")
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["score.weight"], other["score.weight"])


@pytest.mark.slow
def test_learning_rate_0_leaves_the_actor_as_it_was_with_no_kl(alone: Processes, tiny_overrides: Overrides) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    run_reward(alone, tiny_overrides())
    run_ppo(alone, tiny_overrides("train.actor.learning_rate=0", "train.epochs=2"))
    assert [row["train/kl"] for row in rows(logs, "ppo")[1:]] == [0.0]
    before = load_file(logs / "pointwise" / "a" / "best" / "model.safetensors")
    after = load_file(logs / "ppo" / "a" / "checkpoints" / "last" / "model.safetensors")
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.slow
def test_both_objectives_log_all_that_stage_3_is_watched_by(alone: Processes, tiny_overrides: Overrides) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    run_reward(alone, tiny_overrides())
    for weighting in ("batch", "pair"):
        run_ppo(alone, tiny_overrides(f"loss.weighting={weighting}", "train.epochs=2"), weighting)
        wanted = {"reward", "value", "kl", "entropy", "advantage", "reversed", "policy_loss", "value_loss"}
        assert {f"train/{name}" for name in wanted} <= set(rows(logs, "ppo", weighting)[-1])


@pytest.mark.slow
def test_an_update_waits_for_all_batches_of_its_rollout(alone: Processes, tiny_overrides: Overrides) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    run_reward(alone, tiny_overrides())
    settings = ("train.clips_per_batch=4", "train.batches_per_rollout=3", "train.epochs=1", "train.evaluate_every=1")
    run_ppo(alone, tiny_overrides(*settings))
    assert [row["step"] for row in rows(logs, "ppo")] == [0, 1, 2]
    with pytest.raises(UserError, match="batches_per_rollout: found 9, but the run has 8 batches"):
        run_ppo(alone, tiny_overrides(*settings, "train.batches_per_rollout=9"), "too-few")
    assert not (logs / "ppo" / "too-few").exists()


def test_a_name_that_is_taken_is_refused_before_any_work(alone: Processes, tiny_overrides: Overrides) -> None:
    run_pointwise(alone, tiny_overrides())
    with pytest.raises(UserError, match="a run of this name exists and is finished"):
        run_pointwise(alone, tiny_overrides())


@pytest.mark.slow
def test_without_names_the_newest_finished_runs_of_the_preset_are_taken(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    with pytest.raises(UserError, match=r"no finished pointwise run of preset mini .* sh pointwise\.sh NAME"):
        run_reward(alone, tiny_overrides())
    logs = run_pointwise(alone, tiny_overrides(), "older").logs
    run_pointwise(alone, tiny_overrides(), "newer")
    run_pointwise(alone, tiny_overrides("preset=other"), "newest-but-of-another-preset")
    run_reward(alone, tiny_overrides())
    assert str(logs / "pointwise" / "newer") in (logs / "reward" / "a" / "config.yaml").read_text(encoding="utf-8")
    with pytest.raises(UserError, match=r"gone: found no such run .* there are: pointwise/newer"):
        run_reward(alone, tiny_overrides("ranker=gone"), "b")


@pytest.mark.parametrize("source", ["ranker", "reward"])
def test_stage_3_starts_from_no_random_model(source: str, alone: Processes, tiny_overrides: Overrides) -> None:
    run_pointwise(alone, tiny_overrides(), "a")
    run_reward(alone, tiny_overrides(), "a")
    with pytest.raises(UserError, match=rf"^{source}: found none, wanted newest, a name or a path"):
        run_ppo(alone, tiny_overrides(f"{source}=none"), "a")


def test_a_ranker_of_another_shape_is_refused_naming_the_key(alone: Processes, tiny_overrides: Overrides) -> None:
    run_pointwise(alone, tiny_overrides())
    with pytest.raises(UserError, match=r"another shape: model\.width 64 \(here 32\)"):
        run_reward(alone, tiny_overrides("model.width=32"))


def test_the_flatten_head_runs_all_stages(alone: Processes, tiny_overrides: Overrides) -> None:
    shape = ("model.head=flatten", "model.attention=published", "model.text_tokens=4", "model.width=16")
    logs = run_pointwise(alone, tiny_overrides(*shape)).logs
    run_reward(alone, tiny_overrides(*shape))
    run_ppo(alone, tiny_overrides("train.epochs=2"))
    assert rows(logs, "reward")[-1]["validation/pair_accuracy"] > 0.9
