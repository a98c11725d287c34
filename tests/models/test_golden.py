"""Models, losses, gradients and NDCG match the reference tensors of the published implementation."""

import json
from pathlib import Path
from typing import Literal, TypeVar, get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lr2ppo.config.schema import Precision
from lr2ppo.distributed.processes import autocast, choose_device
from lr2ppo.evaluation.metrics import CUTOFFS, ndcg
from lr2ppo.losses.pointwise import smooth_l1_loss
from lr2ppo.losses.policy import PPOLosses, ppo_losses
from lr2ppo.losses.preference import preference_hinge_loss
from lr2ppo.models.published import PUBLISHED_MODULES, load_partial_order, load_ranker
from lr2ppo.ops.linear import use_fast_linear
from tests.helpers.golden import GOLDEN

M = TypeVar("M", bound=nn.Module)
Golden = dict[str, Tensor]
Products = Literal["torch's", "this processor's"]


@pytest.fixture(params=get_args(Products))
def products(request: pytest.FixtureRequest) -> Products:
    """Compare with the reference twice: with torch's products, which computed it, and with `FastLinear`."""
    chosen: Products = request.param
    return chosen


def choose_products(model: M, products: Products) -> M:
    return use_fast_linear(model) if products == "this processor's" else model


def read(name: str) -> Golden:
    return dict(load_file(GOLDEN / name))


def weights(tensors: Golden, prefix: str, folder: Path) -> Path:
    """Write a published checkpoint of the tensors whose names start with the prefix."""
    path = folder / f"{prefix}safetensors"
    save_file({name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}, path)
    return path


def sizes() -> dict[str, int]:
    meta = json.loads((GOLDEN / "meta.json").read_text(encoding="utf-8"))
    return {"text_tokens": meta["tokens"], "frames": meta["frames"]}


def assert_equal(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Assert equality within the tolerance, relative to the largest wanted value."""
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance * wanted.abs().max().item())


@torch.no_grad()
def test_the_ranker_gives_the_published_scores_and_loss(tmp_path: Path, products: Products) -> None:
    reference = read("ranker.safetensors")
    ranker = choose_products(load_ranker(weights(reference, "weights.", tmp_path), **sizes()), products)
    scores = ranker(reference["text"], reference["frames"])
    assert_equal(scores, reference["scores"])
    assert_equal(smooth_l1_loss(scores, reference["targets"]), reference["smooth_l1_loss"])


@torch.no_grad()
def test_the_reward_model_gives_the_published_rewards_and_loss(tmp_path: Path, products: Products) -> None:
    reference = read("reward.safetensors")
    reward_model = choose_products(load_partial_order(weights(reference, "weights.", tmp_path), **sizes()), products)
    chosen, rejected = (
        reward_model(reference["text"], reference["frames"], reference[order]) for order in ("chosen", "rejected")
    )
    assert_equal(chosen, reference["chosen_reward"])
    assert_equal(rejected, reference["rejected_reward"])
    assert_equal(preference_hinge_loss(chosen, rejected), reference["hinge_loss"])


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 2e-3), ("bf16", 3e-2)])
def test_a_gpu_gives_the_published_scores_and_rewards(precision: Precision, tolerance: float, tmp_path: Path) -> None:
    device = choose_device("cuda")
    reference = {name: tensor.to(device) for name, tensor in read("ranker.safetensors").items()}
    pairs = {name: tensor.to(device) for name, tensor in read("reward.safetensors").items()}
    ranker = load_ranker(weights(read("ranker.safetensors"), "weights.", tmp_path), **sizes()).to(device)
    reward_model = load_partial_order(weights(read("reward.safetensors"), "weights.", tmp_path), **sizes()).to(device)
    with autocast(precision, device):
        scores = ranker(reference["text"], reference["frames"])
        rewards = reward_model(pairs["text"], pairs["frames"], pairs["chosen"])
    assert_equal(scores, reference["scores"], tolerance)
    assert_equal(rewards, pairs["chosen_reward"], tolerance)


class Update:
    """The published update of stage 3, computed by our models and losses from the reference rollout."""

    def __init__(self, folder: Path, products: Products) -> None:
        self.reference = read("ppo_update.safetensors")
        actor = load_ranker(weights(self.reference, "actor.", folder), **sizes())
        critic = load_partial_order(weights(self.reference, "critic.", folder), **sizes())
        self.actor, self.critic = choose_products(actor, products), choose_products(critic, products)
        text, frames = self.reference["rollout.text"], self.reference["rollout.frames"]
        given, state = self.reference["rollout.state"], self.reference["rollout.next_state"]
        self.value = self.critic(text, frames, given)
        self.losses: PPOLosses = ppo_losses(
            scores=self.actor(text, frames).gather(1, given),
            old_scores=self.reference["rollout.scores"],
            proposed=positions(given, state[:, 2:]),
            reward=self.reference["rollout.reward"],
            value=self.value,
            old_value=self.reference["rollout.value"],
        )


def positions(given: Tensor, order: Tensor) -> Tensor:
    """The positions of an order's labels `[P, 2]` in the pair as given `[P, 2]`."""
    return (order.unsqueeze(-1) == given.unsqueeze(1)).long().argmax(-1)


@pytest.fixture
def update(tmp_path: Path, products: Products) -> Update:
    return Update(tmp_path, products)


@pytest.mark.parametrize(
    "name", ["policy_loss", "value_loss", "kl_penalty", "entropy", "advantage", "penalised_reward", "rank_loss"]
)
def test_the_update_gives_each_published_scalar(update: Update, name: str, products: Products) -> None:
    found: Tensor = getattr(update.losses, name)
    # The KL is a difference of nearly equal logarithms, so another library's rounding is visible in it.
    tolerance = 1e-4 if name == "kl_penalty" and products == "this processor's" else 1e-5
    assert_equal(found.mean(), update.reference[f"update.{name}"], tolerance)


def test_the_update_reads_the_published_values_and_reverses_the_third_order(update: Update) -> None:
    assert_equal(update.value.mean(), update.reference["update.value"])
    assert update.losses.reversed_order.tolist() == [False, False, True]


def test_backward_on_the_two_losses_gives_the_published_gradients(update: Update) -> None:
    (update.losses.policy_loss + update.losses.value_loss).backward()
    wanted = {name: tensor for name, tensor in update.reference.items() if name.startswith("grad.")}
    assert len(wanted) == 4
    models = {"actor": update.actor, "critic": update.critic}
    found = {}
    for owner, model in models.items():
        for name, parameter in model.named_parameters():
            module, _, kind = name.rpartition(".")
            found[f"grad.{owner}.{PUBLISHED_MODULES[module]}.{kind}"] = parameter.grad
    for name, gradient in wanted.items():
        mine = found[name]
        assert mine is not None
        assert_equal(mine, gradient, tolerance=1e-4)


def test_ndcg_is_the_published_one_at_every_cutoff() -> None:
    cases = json.loads((GOLDEN / "ndcg.json").read_text(encoding="utf-8"))
    for case in cases:
        scores, grades = torch.tensor([case["scores"]]), torch.tensor([case["relevance"]])
        for name, k in CUTOFFS.items():
            wanted = case["ndcg"]["all" if k is None else str(k)]
            assert ndcg(scores, grades, k=k).item() == pytest.approx(wanted, abs=1e-6), (case, name)
