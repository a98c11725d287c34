"""Stage 3 may start from a fine-tuned ranker, and leaves its start only for weights that are clearly better."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lr2ppo.config.load import load_config
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.stages import finetune, reward
from lr2ppo.training.run import exceeds
from tests.stages.test_stages import PRESET, run_pointwise, run_ppo, run_reward

Overrides = Callable[..., list[str]]


def run_finetune(processes: Processes, overrides: list[str]) -> Path:
    settings = ["train.epochs=2", "train.clips_per_batch=4", "train.learning_rate=2e-3", "data.frames=3", "name=a"]
    config = load_config(PRESET / "finetune.yaml", "finetune", [*settings, *overrides])
    torch.manual_seed(config.seed)
    finetune.train(config, processes, fresh=False)
    return config.logs / "finetune" / "a"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(folder / "best" / "model.safetensors"))


@pytest.mark.slow
def test_a_residual_reward_model_starts_with_its_rankers_preferences_and_learns_from_there(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    ranker = load_kind(run_finetune(alone, tiny_overrides("ranker=a")) / "best", RelevanceRanker)
    settings = ["model.residual=true", "ranker=finetune/a", "data.frames=3"]
    still = tiny_overrides(*settings, "name=still", "train.learning_rate=0", "train.epochs=1")
    reward.train(load_config(PRESET / "reward.yaml", "reward", still), alone, fresh=False)
    reward_model = load_kind(logs / "reward" / "still" / "best", PartialOrderModel)
    vectors = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    scores = ranker.score(vectors)
    order, swapped = torch.tensor([[[3, 1, 1, 3]]] * 2), torch.tensor([[[3, 1, 3, 1]]] * 2)
    with torch.no_grad():
        margin = reward_model.score_orders(vectors, order) - reward_model.score_orders(vectors, swapped)
    torch.testing.assert_close(margin[:, 0], scores[:, 1] - scores[:, 3])
    run_reward(alone, tiny_overrides(*settings), "learned")
    finished = json.loads((logs / "reward" / "learned" / "finished.json").read_text(encoding="utf-8"))
    assert finished["best_metric"] > 0.97


@pytest.mark.slow
def test_stage_3_starts_from_the_newest_fine_tuned_ranker_if_it_is_named_so(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    run_reward(alone, tiny_overrides())
    settings = ("ranker=finetune/newest", "policy.name=exact", "train.epochs=1", "train.actor.learning_rate=0")
    with pytest.raises(UserError, match=r"found no finished finetune run .* train one first: .* sh finetune.sh NAME"):
        run_ppo(alone, tiny_overrides(*settings))
    run_finetune(alone, tiny_overrides("ranker=a"))
    run_ppo(alone, tiny_overrides(*settings))
    start, found = weights(logs / "finetune" / "a"), weights(logs / "ppo" / "a")
    assert all(torch.equal(start[name], found[name]) for name in start)


@pytest.mark.slow
def test_weights_that_are_hardly_better_than_the_start_are_not_taken(
    alone: Processes, tiny_overrides: Overrides
) -> None:
    logs = run_pointwise(alone, tiny_overrides()).logs
    run_reward(alone, tiny_overrides())
    # After two updates some clips are better and some are not.
    settings = ("policy.name=exact", "train.epochs=1", "train.evaluate_every=1", "train.actor.learning_rate=1e-3")
    start = weights(logs / "pointwise" / "a")
    for name, errors, keeps in (("any", -1000, False), ("clear", 1000, True)):
        run_ppo(alone, tiny_overrides(*settings, f"train.standard_errors={errors}"), name)
        assert torch.equal(start["score.weight"], weights(logs / "ppo" / name)["score.weight"]) == keeps


def test_a_gain_must_exceed_its_standard_errors() -> None:
    start = np.full(16, 0.5)
    found = start + np.tile([0.1, -0.05], 8)
    error = np.tile([0.1, -0.05], 8).std(ddof=1) / 4
    assert exceeds(found, start, 0.99 * 0.025 / error)
    assert not exceeds(found, start, 1.01 * 0.025 / error)
    assert not exceeds(start, start, 0.0)
    assert exceeds(found, start, 0.0)
    assert exceeds(start - (found - start), start, -1.01 * 0.025 / error)
    assert not exceeds(start - (found - start), start, -0.99 * 0.025 / error)
    assert exceeds(np.array([0.6]), np.array([0.5]), 5.0)
