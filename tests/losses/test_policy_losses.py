"""The losses of stage 3's other policies agree with the definitions they are closed forms of."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lr2ppo.losses import (
    clipped_policy_loss,
    exact_policy_loss,
    list_kl,
    list_log_probabilities,
    reinforce_loss,
)

MODERATE = settings(deadline=None, max_examples=60)
numbers = st.floats(-4, 4)


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def exact(difference: float, start: float, margin: float, kl_weight: float) -> Tensor:
    return exact_policy_loss(
        difference=double(difference), start_difference=double(start), margin=double(margin), kl_weight=kl_weight
    ).policy_loss


@MODERATE
@given(numbers, numbers, numbers, numbers, st.floats(0.05, 2))
def test_the_exact_loss_is_the_expectation_over_both_orders(
    difference: float, start: float, first_reward: float, second_reward: float, kl_weight: float
) -> None:
    policy, before = torch.softmax(double(difference, 0), 0), torch.softmax(double(start, 0), 0)
    rewards = double(first_reward, second_reward)
    wanted = kl_weight * (policy * (policy / before).log()).sum() - (policy * (rewards - rewards.mean())).sum()
    found = exact(difference, start, first_reward - second_reward, kl_weight)
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


@MODERATE
@given(numbers, numbers, st.floats(0.2, 2), numbers)
def test_no_policy_is_better_than_the_start_plus_the_margin_over_the_kl_weight(
    start: float, margin: float, kl_weight: float, other: float
) -> None:
    best = exact(start + margin / kl_weight, start, margin, kl_weight)
    assert best <= exact(other, start, margin, kl_weight) + 1e-12


def test_a_policy_that_is_its_start_pays_nothing_and_gains_by_the_margin() -> None:
    losses = exact_policy_loss(difference=double(1.0), start_difference=double(1.0), margin=double(2.0), kl_weight=0.5)
    assert losses.kl_to_start.item() == pytest.approx(0, abs=1e-12)
    assert losses.advantage.item() == pytest.approx((1 / (1 + math.exp(-1)) - 0.5) * 2)


@MODERATE
@given(st.lists(numbers, min_size=1, max_size=4), st.integers(0, 2))
def test_the_probabilities_of_all_orders_of_a_list_add_up_to_one(scores: list[float], padding: int) -> None:
    orders = torch.tensor(list(permutations(range(len(scores)))))
    ordered = torch.nn.functional.pad(double(*scores)[orders], (0, padding), value=math.nan)
    mask = (torch.arange(len(scores) + padding) < len(scores)).expand_as(ordered)
    found = list_log_probabilities(ordered.nan_to_num(99.0), mask).exp()
    assert found.sum().item() == pytest.approx(1)


@MODERATE
@given(st.lists(st.tuples(numbers, numbers), min_size=2, max_size=4))
def test_the_kl_of_lists_is_the_expectation_of_the_estimate(pairs: list[tuple[float, float]]) -> None:
    now, start = double(*(pair[0] for pair in pairs)), double(*(pair[1] for pair in pairs))
    orders = torch.tensor(list(permutations(range(len(pairs)))))
    mask = torch.ones(orders.shape, dtype=torch.bool)
    log_now, log_start = (list_log_probabilities(scores[orders], mask) for scores in (now, start))
    wanted = (log_now.exp() * (log_now - log_start)).sum()
    found = (log_now.exp() * list_kl(now[orders], start[orders], mask)).sum()
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-9)


def test_padding_changes_neither_the_probability_nor_the_kl_nor_their_gradients() -> None:
    scores, start = double(0.3, -1.0, 2.0), double(0.1, 0.2, 0.3)
    results = []
    for padding in (0, 2):
        padded = torch.nn.functional.pad(scores, (0, padding), value=7.0).requires_grad_()
        mask = torch.arange(3 + padding) < 3
        before = torch.nn.functional.pad(start, (0, padding), value=-5.0)
        value = list_log_probabilities(padded, mask) + list_kl(padded, before, mask)
        (gradient,) = torch.autograd.grad(value, padded)
        assert gradient[3:].eq(0).all()
        results.append(torch.cat([value[None], gradient[:3]]))
    torch.testing.assert_close(results[1], results[0])


def test_a_ratio_that_left_the_clipped_range_in_the_advantages_direction_teaches_nothing() -> None:
    old = double(0, 0, 0, 0)
    now = double(0.5, -0.5, 0.5, -0.5).requires_grad_()
    advantage = double(1, -1, -1, 1)
    (gradient,) = torch.autograd.grad(clipped_policy_loss(now, old, advantage, ratio_clip=0.2), now)
    assert gradient.eq(0).tolist() == [True, True, False, False]


def test_at_the_rollout_ppo_and_reinforce_have_the_same_gradient() -> None:
    advantage = double(0.4, -2, 1)
    gradients = []
    for loss in (lambda x: clipped_policy_loss(x, x.detach(), advantage), lambda x: reinforce_loss(x, advantage)):
        log_probability = double(-1, -2, -3).requires_grad_()
        gradients.append(torch.autograd.grad(loss(log_probability), log_probability)[0])
    torch.testing.assert_close(gradients[0], gradients[1])
