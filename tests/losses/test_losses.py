"""The losses of the three stages."""

import math
from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lr2ppo.losses.pointwise import smooth_l1_loss
from lr2ppo.losses.policy import ppo_losses
from lr2ppo.losses.preference import (
    distillation_loss,
    dpo_loss,
    ipo_loss,
    logistic_preference_loss,
    preference_hinge_loss,
)

MODERATE = settings(deadline=None, max_examples=60)

Weighting = Literal["batch", "pair"]
weightings = pytest.mark.parametrize("weighting", ["batch", "pair"])
Rollout = dict[str, Any]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw_rollout(pairs: int, seed: int) -> Rollout:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old_scores = normal(pairs, 2)
    return {
        "scores": old_scores + 0.5 * normal(pairs, 2),
        "old_scores": old_scores,
        "proposed": old_scores.argsort(dim=-1, descending=True),
        "reward": normal(pairs),
        "value": normal(pairs),
        "old_value": normal(pairs),
    }


def one_pair(
    scores: tuple[float, float], *, reward: float, old_scores: tuple[float, float] | None = None, value: float = 0.0
) -> Rollout:
    """A pair proposed as given, whose value at the rollout was 0."""
    return {
        "scores": double(*scores)[None],
        "old_scores": double(*(scores if old_scores is None else old_scores))[None],
        "proposed": torch.tensor([[0, 1]]),
        "reward": double(reward),
        "value": double(value),
        "old_value": double(0.0),
    }


def loop_policy_loss(
    rollout: Rollout, weighting: Weighting, margin: float, kl_weight: float, entropy_weight: float
) -> float:
    """Compute the policy loss of docs/method.md in Python numbers, one pair at a time."""
    advantages: list[float] = []
    hinges: list[float] = []
    entropies: list[float] = []
    for pair in range(len(rollout["reward"])):
        old, new = (
            [math.exp(s - max(row)) / sum(math.exp(t - max(row)) for t in row) for s in row]
            for row in (rollout["old_scores"][pair].tolist(), rollout["scores"][pair].tolist())
        )
        kl = sum(p * math.log(p / q) for p, q in zip(old, new, strict=True))
        entropies.append(-sum(q * math.log(q) for q in new))
        advantages.append(float(rollout["reward"][pair]) - kl_weight * kl - float(rollout["old_value"][pair]))
        first, second = rollout["proposed"][pair].tolist()
        if advantages[-1] < -0.1:
            first, second = second, first
        hinges.append(max(0.0, margin - float(rollout["scores"][pair, first] - rollout["scores"][pair, second])))
    violated = max(1, sum(hinge > 0 for hinge in hinges))
    entropy = sum(entropies) / len(entropies)
    if weighting == "batch":
        size = sum(map(abs, advantages)) / len(advantages)
        return sum(hinges) / violated * size - entropy_weight * entropy
    weighted = sum(hinge * abs(advantage) for hinge, advantage in zip(hinges, advantages, strict=True))
    return weighted / violated - entropy_weight * entropy


@MODERATE
@given(st.floats(-3, 3), st.integers(0, 2), st.floats(0.1, 1.5))
def test_smooth_l1_is_quadratic_up_to_beta_and_linear_beyond(score: float, grade: int, beta: float) -> None:
    distance = abs(score - grade)
    expected = distance**2 / (2 * beta) if distance < beta else distance - beta / 2
    loss = smooth_l1_loss(double(score)[None], torch.tensor([[grade]]), beta=beta)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_smooth_l1_has_beta_0_3_by_default() -> None:
    assert smooth_l1_loss(double(0.2)[None], torch.tensor([[0]])).item() == pytest.approx(0.04 / 0.6)


def test_smooth_l1_averages_over_real_labels_only() -> None:
    scores = torch.tensor([[1.5, 0.0, 9.0], [2.0, 7.0, -9.0]], requires_grad=True)
    grades = torch.tensor([[2, 1, 0], [2, 0, 0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    loss = smooth_l1_loss(scores, grades, mask, beta=0.3)
    assert loss.item() == pytest.approx((0.35 + 0.85 + 0.0) / 3)
    loss.backward()
    assert scores.grad is not None
    assert torch.all(scores.grad[~mask] == 0)


def test_preference_hinge_wants_the_chosen_reward_ahead_by_the_margin() -> None:
    chosen, rejected = double(2.0, 0.5, 0.0), double(0.0, 0.0, 1.0)
    assert preference_hinge_loss(chosen, rejected).item() == pytest.approx((0.0 + 0.5 + 2.0) / 3)
    assert preference_hinge_loss(chosen, rejected, margin=3.0).item() == pytest.approx((1.0 + 2.5 + 4.0) / 3)


def test_preference_hinge_pulls_the_two_rewards_apart() -> None:
    chosen, rejected = double(0.0, 5.0).requires_grad_(), double(0.0, 0.0).requires_grad_()
    preference_hinge_loss(chosen, rejected).backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.tolist() == [-0.5, 0.0]
    assert rejected.grad.tolist() == [0.5, 0.0]


def test_losses_relative_to_the_start_have_the_values_of_their_papers() -> None:
    chosen, rejected = double(2.0, 0.0, -1.0), double(0.0, 0.0, 1.0)
    of_hand = [math.log(1 + math.exp(-beta_times)) for beta_times in (1.0, 0.0, -1.0)]
    assert dpo_loss(chosen, rejected, beta=0.5).item() == pytest.approx(sum(of_hand) / 3)
    # At the start, each order is as likely as there.
    assert dpo_loss(double(0.3), double(0.3)).item() == pytest.approx(math.log(2))
    assert dpo_loss(chosen, rejected).item() == pytest.approx(logistic_preference_loss(chosen, rejected).item())
    assert ipo_loss(chosen, rejected, beta=0.5).item() == pytest.approx((1.0 + 1.0 + 9.0) / 3)
    # Further than 1 / (2 beta) apart is too far.
    assert ipo_loss(double(2.0), double(0.0), beta=0.25).item() == 0.0
    assert ipo_loss(double(3.0), double(0.0), beta=0.25).item() == 1.0


@pytest.mark.parametrize(
    "loss", [preference_hinge_loss, logistic_preference_loss, dpo_loss, ipo_loss, distillation_loss]
)
def test_pairs_that_are_not_counted_change_nothing(loss: Callable[..., Tensor]) -> None:
    first, second = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    counted = torch.tensor([True, False, True, True, False, True])
    found = loss(first, second, counted=counted)
    torch.testing.assert_close(found, loss(first[counted], second[counted]))
    assert loss(first, second, counted=torch.zeros(6, dtype=torch.bool)) == 0


@MODERATE
@given(st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([0.01, 0.5, 2.0]))
@pytest.mark.parametrize("loss", [preference_hinge_loss, logistic_preference_loss, dpo_loss, ipo_loss])
def test_a_loss_of_pairs_depends_on_margins_alone_and_its_gradient_is_right(
    loss: Callable[..., Tensor], pairs: int, seed: int, parameter: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected, shift = torch.randn(3, pairs, generator=generator, dtype=torch.float64)
    name = {preference_hinge_loss: "margin", dpo_loss: "beta", ipo_loss: "beta"}.get(loss)
    own = {} if name is None else {name: parameter}
    value = loss(chosen, rejected, **own)
    assert loss(chosen + shift, rejected + shift, **own).item() == pytest.approx(value.item())
    assert torch.autograd.gradcheck(
        lambda better, worse: loss(better, worse, **own), (chosen.requires_grad_(), rejected.requires_grad_())
    )


@MODERATE
@given(st.integers(1, 12), st.integers(0, 10**6), st.sampled_from([0.0, 0.001, 0.3]), st.sampled_from([0.01, 1.0]))
@weightings
def test_policy_loss_is_the_formula_pair_by_pair(
    weighting: Weighting, pairs: int, seed: int, weight: float, margin: float
) -> None:
    rollout = draw_rollout(pairs, seed)
    losses = ppo_losses(**rollout, weighting=weighting, margin=margin, kl_weight=weight, entropy_weight=2 * weight)
    expected = loop_policy_loss(rollout, weighting, margin, weight, 2 * weight)
    assert losses.policy_loss.item() == pytest.approx(expected, abs=1e-12)


def test_the_published_constants_are_the_defaults() -> None:
    rollout = draw_rollout(20, seed=3)
    given_all = ppo_losses(
        **rollout,
        weighting="batch",
        margin=0.01,
        reverse_below=-0.1,
        kl_weight=0.001,
        entropy_weight=0.001,
        value_clip=0.5,
    )
    losses = ppo_losses(**rollout)
    assert torch.equal(losses.policy_loss, given_all.policy_loss)
    assert torch.equal(losses.value_loss, given_all.value_loss)


@MODERATE
@given(st.integers(1, 8), st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]))
def test_kl_is_exactly_0_without_gradient_while_the_actor_has_not_moved(
    pairs: int, seed: int, dtype: torch.dtype
) -> None:
    rollout = draw_rollout(pairs, seed)
    scores = rollout["old_scores"].to(dtype)
    moving = scores.clone().requires_grad_()
    losses = ppo_losses(**(rollout | {"scores": moving, "old_scores": scores}))
    assert torch.all(losses.kl_penalty == 0)
    assert torch.equal(losses.advantage, rollout["reward"] - rollout["old_value"])
    losses.kl_penalty.sum().backward()
    assert moving.grad is not None
    assert moving.grad.abs().max() < 1e-6


@MODERATE
@given(st.floats(-20, 20), st.floats(-20, 20), st.floats(-20, 20))
def test_kl_is_never_negative_and_ignores_what_both_scores_share(first: float, second: float, shift: float) -> None:
    rollout = one_pair((first, 0.0), old_scores=(second, 0.0), reward=0.0)
    kl = ppo_losses(**rollout).kl_penalty
    assert kl.item() >= -1e-12
    shifted = rollout | {"scores": rollout["scores"] + shift}
    torch.testing.assert_close(ppo_losses(**shifted).kl_penalty, kl, atol=1e-9, rtol=1e-9)


def test_kl_runs_from_the_old_policy_to_the_new_one() -> None:
    losses = ppo_losses(**one_pair((math.log(9), 0.0), old_scores=(0.0, 0.0), reward=0.0))
    assert losses.kl_penalty.item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1))


@MODERATE
@given(st.floats(-30, 30), st.floats(-30, 30))
def test_entropy_is_largest_at_equal_scores(first: float, second: float) -> None:
    entropy = ppo_losses(**one_pair((first, second), reward=0.0)).entropy.item()
    assert 0.0 <= entropy <= math.log(2) + 1e-12
    assert ppo_losses(**one_pair((first, first), reward=0.0)).entropy.item() == pytest.approx(math.log(2))


def test_policy_loss_rewards_entropy() -> None:
    rollout = one_pair((3.0, 0.0), reward=1.0)
    losses = ppo_losses(**rollout, entropy_weight=0.25)
    assert losses.policy_loss.item() == pytest.approx(-0.25 * losses.entropy.item())


@MODERATE
@given(st.integers(1, 10), st.integers(0, 10**6), st.floats(0, 2))
def test_advantage_is_the_reward_less_the_kl_penalty_and_the_old_value(pairs: int, seed: int, weight: float) -> None:
    rollout = draw_rollout(pairs, seed)
    losses = ppo_losses(**rollout, kl_weight=weight)
    penalised = rollout["reward"] - weight * losses.kl_penalty
    torch.testing.assert_close(losses.penalised_reward, penalised)
    torch.testing.assert_close(losses.advantage, penalised - rollout["old_value"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_order_is_reversed_below_minus_0_1_and_kept_at_it(dtype: torch.dtype) -> None:
    reward = torch.tensor([-0.1001, -0.1, -0.0999, 0.0, 1.0], dtype=dtype)
    scores = torch.zeros(5, 2, dtype=dtype)
    losses = ppo_losses(
        scores=scores,
        old_scores=scores,
        proposed=torch.tensor([[0, 1]]).expand(5, -1),
        reward=reward,
        value=torch.zeros(5, dtype=dtype),
        old_value=torch.zeros(5, dtype=dtype),
    )
    assert losses.reversed_order.tolist() == [True, False, False, False, False]


@weightings
@pytest.mark.parametrize("proposed", [[0, 1], [1, 0]])
def test_a_bad_advantage_turns_the_hinge_around(weighting: Weighting, proposed: list[int]) -> None:
    rollout = one_pair((2.0, 0.5), reward=-0.75) | {"proposed": torch.tensor([proposed])}
    reversed_hinge = ppo_losses(**rollout, weighting=weighting).rank_loss.item()
    kept_hinge = ppo_losses(**rollout, weighting=weighting, reverse_below=-1.0).rank_loss.item()
    right_order, wrong_order = (kept_hinge, reversed_hinge) if proposed == [0, 1] else (reversed_hinge, kept_hinge)
    assert right_order == 0.0
    assert wrong_order == pytest.approx(0.01 + 1.5)


def test_rank_loss_is_the_mean_over_violated_pairs_only() -> None:
    rollout = draw_rollout(4, seed=0) | {
        "scores": double(5, 0, 1, 0, 0, 1, 0, 3).view(4, 2),
        "proposed": torch.tensor([[0, 1]] * 4),
        "reward": double(1, 1, 1, 1),
        "old_value": double(0, 0, 0, 0),
    }
    assert ppo_losses(**rollout, margin=0.5).rank_loss.item() == pytest.approx((1.5 + 3.5) / 2)


@weightings
def test_without_a_violated_pair_the_loss_and_its_gradient_are_0(weighting: Weighting) -> None:
    rollout = one_pair((4.0, 0.0), reward=1.0)
    scores = rollout["scores"].requires_grad_()
    losses = ppo_losses(**rollout, weighting=weighting, entropy_weight=0.0)
    assert losses.rank_loss.item() == 0.0
    assert losses.policy_loss.item() == 0.0
    losses.policy_loss.backward()
    assert scores.grad is not None
    assert scores.grad.tolist() == [[0.0, 0.0]]


@MODERATE
@given(st.integers(0, 10**6))
def test_both_weightings_agree_on_a_single_pair(seed: int) -> None:
    gradients, values = [], []
    for weighting in ("batch", "pair"):
        rollout = draw_rollout(1, seed)
        scores = rollout["scores"].requires_grad_()
        losses = ppo_losses(**rollout, weighting=weighting, margin=1.0, kl_weight=0.3)
        losses.policy_loss.backward()
        assert scores.grad is not None
        gradients.append(scores.grad)
        values.append(losses.policy_loss.detach())
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def two_pairs() -> Rollout:
    """A violated pair of small advantage and a well-ordered pair of large advantage, which has moved."""
    return {
        "scores": double(0.0, 1.0, 3.0, 0.0).view(2, 2).requires_grad_(),
        "old_scores": double(0.0, 1.0, 0.5, 0.0).view(2, 2),
        "proposed": torch.tensor([[0, 1], [0, 1]]),
        "reward": double(0.2, 5.0),
        "value": double(0.0, 0.0),
        "old_value": double(0.0, 0.0),
    }


def test_weighting_by_batch_weights_the_mean_hinge_by_every_advantage() -> None:
    losses = ppo_losses(**two_pairs(), weighting="batch", entropy_weight=0.0, kl_weight=0.0)
    assert losses.policy_loss.item() == pytest.approx(1.01 * (0.2 + 5.0) / 2)


def test_weighting_by_pair_uses_a_violated_pairs_own_advantage() -> None:
    losses = ppo_losses(**two_pairs(), weighting="pair", entropy_weight=0.0, kl_weight=0.0)
    assert losses.policy_loss.item() == pytest.approx(1.01 * 0.2)


def test_the_policy_loss_has_the_gradient_of_the_kl_in_the_advantage() -> None:
    rollout = two_pairs()
    scores = rollout["scores"]
    ppo_losses(**rollout, weighting="batch", entropy_weight=0.0, kl_weight=0.1).policy_loss.backward()
    assert scores.grad is not None
    kl_gradient = scores[1].softmax(-1) - rollout["old_scores"][1].softmax(-1)
    torch.testing.assert_close(scores.grad[1], 1.01 * -0.1 * kl_gradient.detach() / 2)


def test_weighting_by_pair_does_not_change_well_ordered_pairs() -> None:
    rollout = two_pairs()
    ppo_losses(**rollout, weighting="pair", entropy_weight=0.0, kl_weight=0.1).policy_loss.backward()
    assert rollout["scores"].grad is not None
    assert rollout["scores"].grad[1].tolist() == [0.0, 0.0]
    assert rollout["scores"].grad[0].abs().min() > 0


@weightings
@pytest.mark.parametrize(("reward", "rises"), [(1.0, 0), (-1.0, 1)])
def test_a_descent_step_moves_a_violated_pair_towards_the_preferred_order(
    weighting: Weighting, reward: float, rises: int
) -> None:
    rollout = one_pair((0.0, 0.0), reward=reward)
    scores = rollout["scores"].requires_grad_()
    ppo_losses(**rollout, weighting=weighting).policy_loss.backward()
    assert scores.grad is not None
    step = -scores.grad[0]
    assert step[rises] > 0
    assert step[1 - rises] < 0


@pytest.mark.parametrize(
    ("value", "returns", "expected"),
    [
        pytest.param(0.25, 1.0, 0.75**2, id="within the clip"),
        pytest.param(0.75, 1.0, 0.5**2, id="beyond the clip above, the clipped value is further off"),
        pytest.param(0.75, -1.0, 1.75**2, id="beyond the clip above, the value is further off"),
        pytest.param(-0.75, -1.0, 0.5**2, id="beyond the clip below, the clipped value is further off"),
        pytest.param(-0.75, 1.0, 1.75**2, id="beyond the clip below, the value is further off"),
    ],
)
def test_value_loss_takes_the_worse_of_the_value_and_the_clipped_one(
    value: float, returns: float, expected: float
) -> None:
    losses = ppo_losses(**one_pair((1.0, 0.0), reward=returns, value=value))
    assert losses.value_loss.item() == pytest.approx(expected)


def test_the_clip_is_measured_from_the_value_at_the_rollout() -> None:
    rollout = one_pair((1.0, 0.0), reward=4.0, value=3.0) | {"old_value": double(2.0)}
    assert ppo_losses(**rollout, value_clip=0.25).value_loss.item() == pytest.approx((2.25 - 4.0) ** 2)


def test_the_critic_learns_the_reward_less_the_kl_penalty() -> None:
    rollout = one_pair((2.0, 0.0), old_scores=(0.0, 0.0), reward=1.0)
    losses = ppo_losses(**rollout, kl_weight=0.5)
    assert losses.kl_penalty.item() > 0.1
    assert losses.value_loss.item() == pytest.approx((1.0 - 0.5 * losses.kl_penalty.item()) ** 2)


def test_the_value_loss_trains_only_the_critic() -> None:
    rollout = draw_rollout(6, seed=1)
    for name in ("scores", "reward", "value"):
        rollout[name].requires_grad_()
    ppo_losses(**rollout, kl_weight=0.5).value_loss.backward()
    assert rollout["value"].grad.abs().max() > 0
    assert rollout["scores"].grad is None
    assert rollout["reward"].grad is None


def test_the_policy_loss_trains_only_the_actor() -> None:
    rollout = draw_rollout(6, seed=1)
    rollout["scores"].requires_grad_()
    rollout["value"].requires_grad_()
    ppo_losses(**rollout).policy_loss.backward()
    assert rollout["value"].grad is None
    assert rollout["scores"].grad is not None
    assert rollout["scores"].grad.isfinite().all()


@weightings
def test_extreme_scores_leave_losses_and_gradients_finite(weighting: Weighting) -> None:
    scores = torch.tensor([[500.0, -500.0], [-500.0, 500.0]], requires_grad=True)
    losses = ppo_losses(
        scores=scores,
        old_scores=-scores.detach(),
        proposed=torch.tensor([[0, 1], [0, 1]]),
        reward=torch.tensor([1.0, -1.0]),
        value=torch.zeros(2),
        old_value=torch.zeros(2),
        weighting=weighting,
    )
    losses.policy_loss.backward()
    assert losses.policy_loss.isfinite()
    assert losses.kl_penalty.isfinite().all()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


@given(
    st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4)), min_size=1, max_size=5),
    st.floats(0.2, 3),
    st.floats(0.2, 3),
)
@MODERATE
def test_distillation_is_least_where_the_ranker_prefers_as_the_reward_model_does(
    pairs: list[tuple[float, float]], temperature: float, scale: float
) -> None:
    difference, margin = (torch.tensor(each, dtype=torch.float64) for each in zip(*pairs, strict=True))
    found = distillation_loss(difference, margin, temperature, scale).item()
    wanted = [1 / (1 + math.exp(-m / temperature)) for m in margin.tolist()]
    own = [1 / (1 + math.exp(-scale * d)) for d in difference.tolist()]
    terms = [-w * math.log(p) - (1 - w) * math.log(1 - p) for w, p in zip(wanted, own, strict=True)]
    assert found == pytest.approx(sum(terms) / len(terms), abs=1e-9)
    best = margin / (temperature * scale)
    assert distillation_loss(best, margin, temperature, scale).item() <= found + 1e-12
    # An order and its mirror image count alike.
    assert distillation_loss(-difference, -margin, temperature, scale).item() == pytest.approx(found)
    best.requires_grad_()
    (gradient,) = torch.autograd.grad(distillation_loss(best, margin, temperature, scale), best)
    assert gradient.abs().max().item() < 1e-9


def test_distillation_follows_a_sure_reward_model_only() -> None:
    sure, unsure = double(8.0), double(0.0)
    right, wrong = double(2.0), double(-2.0)
    assert distillation_loss(wrong, sure).item() > 1.9 > 0.2 > distillation_loss(right, sure).item()
    assert distillation_loss(wrong, unsure).item() == pytest.approx(distillation_loss(right, unsure).item())
