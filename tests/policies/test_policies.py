"""Every policy of stage 3 learns the reward model's order, and what it reads is checked before any work."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import PPOConfig
from lr2ppo.data.annotations import VALIDATION, Clip
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.policies.exact import fit_kl_weight
from lr2ppo.policies.sampled_lists import sample_orders
from lr2ppo.stages import ppo
from tests.stages.test_stages import PRESET, run_pointwise, run_ppo, run_reward

POLICIES = ("exact", "plackett_luce", "grpo", "reinforce")
LISTS = ["train.epochs=15", "train.clips_per_batch=8", "train.actor.learning_rate=3e-3"]


@pytest.fixture(scope="module")
def trained(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides for runs of stage 3 beside trained runs of stages 1 and 2."""
    alone = Processes(rank=0, world_size=1, device=torch.device("cpu"))
    overrides = [f"data.root={tiny_world}", f"logs={tmp_path_factory.mktemp('policies') / 'logs'}"]
    run_pointwise(alone, overrides)
    run_reward(alone, overrides)
    return overrides


def best(folder: Path) -> float:
    value: float = json.loads((folder / "finished.json").read_text(encoding="utf-8"))["best_metric"]
    return value


def metrics(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def train(processes: Processes, trained: list[str], name: str, *overrides: str) -> Path:
    config = run_ppo(processes, [*trained, *LISTS, *overrides], name)
    return config.logs / "ppo" / name


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_learns_the_order_of_the_reward_model(policy: str, alone: Processes, trained: list[str]) -> None:
    folder = train(alone, trained, policy, f"policy.name={policy}")
    rows = metrics(folder)
    assert rows[0]["validation/ndcg"] < 0.7
    assert best(folder) > 0.95
    assert rows[-1]["train/kl_to_start"] > rows[1]["train/kl_to_start"] > 0
    assert not (folder / "checkpoints" / "last" / "critic").exists()


@pytest.mark.slow
def test_a_heavy_kl_keeps_the_exact_policy_at_its_start(alone: Processes, trained: list[str]) -> None:
    rows = metrics(train(alone, trained, "heavy", "policy.name=exact", "policy.kl_weight=1000"))
    assert rows[-1]["validation/ndcg"] == pytest.approx(rows[0]["validation/ndcg"], abs=0.02)


@pytest.mark.slow
def test_validation_chooses_how_far_the_exact_policy_leaves_its_start(
    alone: Processes, trained: list[str], tiny_world: Path, tmp_path: Path
) -> None:
    exact = ("policy.name=exact", "policy.kl_weight=null", "train.epochs=1")
    right = metrics(train(alone, trained, "right", *exact))
    # By these grades every step towards the reward model's order is a bad one.
    root = shutil.copytree(tiny_world, tmp_path / "data")
    clips = json.loads((root / VALIDATION).read_text(encoding="utf-8"))
    for clip in clips:
        for label in clip["tags"]:
            label["target"] = 2 - int(label["target"])
    (root / VALIDATION).write_text(json.dumps(clips), encoding="utf-8")
    wrong = metrics(train(alone, trained, "wrong", *exact, f"data.root={root}"))
    assert right[-1]["train/kl_weight"] <= 1
    assert wrong[-1]["train/kl_weight"] == 10


@given(st.integers(0, 10**6), st.floats(0.5, 2.0))
@settings(max_examples=30, deadline=None)
def test_the_fitted_kl_weight_is_the_noise_of_the_reward_model_over_that_of_the_start(seed: int, unit: float) -> None:
    rng = np.random.default_rng(seed)
    grades = [rng.integers(0, 3, 20) for _ in range(200)]
    start = [own + rng.normal(0, 1, 20) for own in grades]
    margins = [own + rng.normal(0, 2, 20) for own in grades]
    # The best weights of two estimates are their inverse variances: 1 and 1/4.
    fitted = fit_kl_weight(start, margins, grades)
    assert 2.5 < fitted < 6
    assert fit_kl_weight([unit * own for own in start], margins, grades) == pytest.approx(fitted / unit, rel=0.02)
    assert fit_kl_weight(margins, start, grades) == pytest.approx(1 / fitted, rel=0.02)


@pytest.mark.parametrize(("of_start", "of_margin", "wanted"), [(1, -1, 10), (-1, 1, 0.1), (-1, -1, 10)])
def test_the_fitted_kl_weight_leaves_out_what_orders_labels_wrongly(
    of_start: int, of_margin: int, wanted: float
) -> None:
    rng = np.random.default_rng(0)
    grades = [rng.integers(0, 3, 8) for _ in range(50)]
    start = [of_start * own + rng.normal(0, 1, 8) for own in grades]
    margins = [of_margin * own + rng.normal(0, 1, 8) for own in grades]
    assert fit_kl_weight(start, margins, grades) == wanted


def test_without_pairs_of_different_grades_both_estimates_count_alike() -> None:
    assert fit_kl_weight([np.arange(3.0)], [np.arange(3.0)], [np.zeros(3, dtype=np.int64)]) == 1


@pytest.mark.slow
def test_grades_reward_lists_without_a_reward_model(alone: Processes, trained: list[str]) -> None:
    graded = ["policy.name=grpo", "policy.reward=grades", "reward=none"]
    folder = train(alone, trained, "graded", *graded, f"data.train={VALIDATION}", "train.epochs=30")
    assert best(folder) > 0.95
    with pytest.raises(UserError, match="found None, wanted a whole number"):
        train(alone, trained, "ungraded", *graded)


@pytest.mark.slow
def test_a_function_of_the_user_rewards_lists(alone: Processes, trained: list[str]) -> None:
    seen: set[int] = set()

    def early_names_first(clip: Clip, labels: Sequence[str]) -> float:
        seen.add(len(labels))
        return -sum(place * clip.labels.index(label) for place, label in enumerate(labels, start=1)) / 100

    def config(policy: str) -> PPOConfig:
        overrides = [*trained, *LISTS, f"policy.name={policy}", "name=function", "data.frames=3", "ranker=pointwise/a"]
        loaded: PPOConfig = load_config(PRESET / "ppo.yaml", "ppo", overrides)
        return loaded

    with pytest.raises(UserError, match=r"policy\.name: found exact, .*; for a function, .* choose"):
        ppo.train(config("exact"), alone, False, reward=early_names_first)
    ppo.train(config("reinforce"), alone, False, reward=early_names_first)
    assert seen == {6}
    rows = metrics(config("reinforce").logs / "ppo" / "function")
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
