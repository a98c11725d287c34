"""Every policy of stage 3 learns the reward model's order, and what it reads is checked before any work."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import PPOConfig
from lr2ppo.data.annotations import VALIDATION, Clip
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.policies.sampled_lists import sample_orders
from lr2ppo.stages import ppo
from tests.stages.test_stages import PRESET, run_pointwise, run_ppo, run_reward

Overrides = Callable[..., list[str]]
POLICIES = ("exact", "plackett_luce", "grpo", "reinforce")
LISTS = ["train.epochs=20", "train.clips_per_batch=8", "train.actor.learning_rate=3e-3"]


def best(logs: Path, stage: str = "ppo") -> float:
    finished = json.loads((logs / stage / "a" / "finished.json").read_text(encoding="utf-8"))
    value: float = finished["best_metric"]
    return value


def metrics(logs: Path) -> list[dict[str, float]]:
    lines = (logs / "ppo" / "a" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_learns_the_order_of_the_reward_model(
    policy: str, alone: Processes, tiny_overrides: Overrides
) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    run_reward(alone, tiny_overrides())
    run_ppo(alone, tiny_overrides(f"policy.name={policy}", *LISTS))
    rows = metrics(logs)
    assert rows[0]["validation/ndcg"] < 0.7
    assert best(logs) > 0.95
    assert rows[-1]["train/kl_to_start"] > rows[1]["train/kl_to_start"] > 0
    assert not (logs / "ppo" / "a" / "checkpoints" / "last" / "critic").exists()


@pytest.mark.slow
def test_a_heavy_kl_keeps_the_exact_policy_at_its_start(alone: Processes, tiny_overrides: Overrides) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    run_reward(alone, tiny_overrides())
    run_ppo(alone, tiny_overrides("policy.name=exact", "policy.kl_weight=1000", *LISTS))
    rows = metrics(logs)
    assert rows[-1]["validation/ndcg"] == pytest.approx(rows[0]["validation/ndcg"], abs=0.02)


@pytest.mark.slow
def test_grades_reward_lists_without_a_reward_model(alone: Processes, tiny_overrides: Overrides) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    graded = ["policy.name=grpo", "policy.reward=grades", "reward=none", f"data.train={VALIDATION}"]
    run_ppo(alone, tiny_overrides(*graded, *LISTS, "train.epochs=40"))
    assert best(logs) > 0.95
    with pytest.raises(UserError, match="found None, wanted a whole number"):
        run_ppo(alone, tiny_overrides(*graded[:3], *LISTS), "ungraded")


@pytest.mark.slow
def test_a_function_of_the_user_rewards_lists(alone: Processes, tiny_overrides: Overrides) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    run_reward(alone, tiny_overrides())
    seen: set[int] = set()

    def early_names_first(clip: Clip, labels: Sequence[str]) -> float:
        seen.add(len(labels))
        return -sum(place * clip.labels.index(label) for place, label in enumerate(labels, start=1)) / 100

    for name in ("reinforce", "exact"):
        config: PPOConfig = load_config(
            PRESET / "ppo.yaml", "ppo", tiny_overrides(f"policy.name={name}", "name=a", "data.frames=3", *LISTS)
        )
        if name == "exact":
            with pytest.raises(UserError, match=r"policy\.name: found exact, .*; for a function, .* choose"):
                ppo.train(config, alone, True, reward=early_names_first)
        else:
            ppo.train(config, alone, False, reward=early_names_first)
    assert seen == {6}
    rows = metrics(logs)
    assert rows[-1]["train/reward"] > rows[1]["train/reward"]


def test_keys_of_another_policy_are_refused_and_leave_with_the_policy_of_the_file() -> None:
    published = PRESET.parent / "lrmovienet" / "ppo.yaml"
    config = load_config(published, "ppo", ["policy.name=exact", "policy.kl_weight=0.5"])
    assert config.loss is None
    assert config.train.critic is None
    kept = load_config(published, "ppo", ["policy.name=partial_order"])
    assert kept == load_config(published, "ppo")
    for key in ("loss.margin=1", "train.critic.learning_rate=1e-3"):
        with pytest.raises(UserError, match=r"is read only by policy\.name=partial_order; remove it|is missing"):
            load_config(published, "ppo", ["policy.name=exact", key])
    with pytest.raises(UserError, match=r"policy\.ratio_clip: is not a key of the chosen policy\.name"):
        load_config(published, "ppo", ["policy.name=exact", "policy.ratio_clip=0.1"])
    with pytest.raises(UserError, match=r"policy\.name: found 'ppo', wanted one of 'partial_order', 'exact'"):
        load_config(published, "ppo", ["policy.name=ppo"])


def test_orders_are_sampled_as_often_as_plackett_and_luce_say() -> None:
    scores, mask = torch.tensor([[1.0, 0.0, -0.5, 9.0]]), torch.tensor([[True, True, True, False]])
    orders = sample_orders(scores, mask, torch.tensor([5]), 20000)[0]
    assert orders[:, 3].eq(3).all(), "padding comes last"
    weights = scores[0, :3].exp()
    first = torch.bincount(orders[:, 0], minlength=3) / len(orders)
    torch.testing.assert_close(first, weights / weights.sum(), atol=0.015, rtol=0)
    second_after_0 = torch.bincount(orders[orders[:, 0] == 0, 1], minlength=3)[1:] / (orders[:, 0] == 0).sum()
    torch.testing.assert_close(second_after_0, weights[1:] / weights[1:].sum(), atol=0.015, rtol=0)
    assert torch.equal(orders, sample_orders(scores, mask, torch.tensor([5]), 20000)[0])
    assert not torch.equal(orders, sample_orders(scores, mask, torch.tensor([6]), 20000)[0])
