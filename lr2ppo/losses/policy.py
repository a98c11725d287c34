"""Losses of stage 3: over pairs, of the published and of the exact policy; over sampled lists."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lr2ppo.losses.reduction import Total, mean, this_process

# The score of padding: minus infinity would give gradients that are not numbers.
PADDING = -1e30


@dataclass(frozen=True)
class PPOLosses:
    """The losses of a stage 3 update (`policy_loss`, `value_loss`, `rank_loss`: scalars) and their terms (per pair)."""

    policy_loss: Tensor
    value_loss: Tensor
    rank_loss: Tensor
    kl_penalty: Tensor
    entropy: Tensor
    advantage: Tensor
    penalised_reward: Tensor
    reversed_order: Tensor


def ppo_losses(
    *,
    scores: Tensor,
    old_scores: Tensor,
    proposed: Tensor,
    reward: Tensor,
    value: Tensor,
    old_value: Tensor,
    weighting: Literal["batch", "pair"] = "batch",
    margin: float = 0.01,
    reverse_below: float = -0.1,
    kl_weight: float = 0.001,
    entropy_weight: float = 0.001,
    value_clip: float = 0.5,
    total: Total = this_process,
) -> PPOLosses:
    """Compute the actor's and the critic's loss over label pairs (stage 3, paper section 3.4).

    Shapes: scores, old_scores: [pairs, 2] float, the pair's scores now and at the rollout; proposed: [pairs, 2] long,
    positions 0 and 1 in the order the rollout proposed; reward, value, old_value: [pairs] float. `total` sums a
    tensor over the processes that share a batch; means are over all their pairs.
    `weighting="batch"` is the published objective: the mean hinge over violated pairs, times each pair's |advantage|;
    `"pair"` weights each pair's hinge by its |advantage| and averages over violated pairs.
    """
    old_log_policy, log_policy = old_scores.log_softmax(-1), scores.log_softmax(-1)
    kl = (old_log_policy.exp() * (old_log_policy - log_policy)).sum(-1)
    entropy = -(log_policy.exp() * log_policy).sum(-1)
    penalised_reward = reward - kl_weight * kl
    advantage = penalised_reward - old_value

    reversed_order = advantage.detach() < reverse_below
    preferred = torch.where(reversed_order.unsqueeze(-1), proposed.flip(-1), proposed)
    ordered_scores = scores.gather(-1, preferred)
    hinge = F.relu(margin - (ordered_scores[:, 0] - ordered_scores[:, 1]))
    violated = total((hinge > 0).sum()).clamp(min=1)
    rank_loss = total(hinge.sum()) / violated
    if weighting == "batch":
        weighted_rank_loss = rank_loss * mean(advantage.abs(), total)
    else:
        weighted_rank_loss = total((hinge * advantage.abs()).sum()) / violated
    policy_loss = weighted_rank_loss - entropy_weight * mean(entropy, total)

    returns = penalised_reward.detach()
    clipped_value = old_value + (value - old_value).clamp(-value_clip, value_clip)
    value_loss = mean(torch.maximum((clipped_value - returns) ** 2, (value - returns) ** 2), total)
    return PPOLosses(policy_loss, value_loss, rank_loss, kl, entropy, advantage, penalised_reward, reversed_order)


@dataclass(frozen=True)
class ExactLosses:
    """The loss of the exact policy (scalar) and its terms (per pair)."""

    policy_loss: Tensor
    advantage: Tensor
    kl_to_start: Tensor


def exact_policy_loss(
    *,
    difference: Tensor,
    start_difference: Tensor,
    margin: Tensor,
    kl_weight: float = 0.1,
    total: Total = this_process,
) -> ExactLosses:
    """Compute minus the expected advantage of a policy over the two orders of a pair, and its KL to the start.

    Shapes, all [pairs] float: difference, start_difference: the score of the pair's first label minus that of the
    second, now and of the ranker that the actor starts from; margin: the reward of the order with the first label first
    minus that of the other. `total` as in `ppo_losses`.
    The policy puts the first label first with the probability sigmoid(difference) (Bradley and Terry 1952). A pair has
    two orders, so with the mean of their rewards as baseline, expectation and gradient have closed forms. For
    `kl_weight` tau, the best policy has the difference `start_difference + margin / tau` (as in Rafailov et al. 2023,
    equation 4).
    """
    first = torch.sigmoid(difference)
    advantage = (first - 0.5) * margin
    kl = first * (difference - start_difference) + F.softplus(start_difference) - F.softplus(difference)
    loss = mean(kl_weight * kl - advantage, total)
    return ExactLosses(loss, advantage, kl)


def list_log_probabilities(scores: Tensor, mask: Tensor) -> Tensor:
    """Log probability of drawing labels in the order given, one after another, by their scores: [...].

    Shapes: scores: [..., K] float, in the order of the list; mask: [..., K] bool, False on padding, which comes last
    (Plackett 1975; Luce 1959).
    """
    scores = scores.masked_fill(~mask, PADDING)
    left = scores.flip(-1).logcumsumexp(-1).flip(-1)
    return (scores - left).masked_fill(~mask, 0.0).sum(-1)


def list_kl(scores: Tensor, start_scores: Tensor, mask: Tensor) -> Tensor:
    """Estimate KL(policy || start) of Plackett-Luce policies from sampled lists: [...].

    Shapes as of `list_log_probabilities`: the scores now, and those of the start, in the order of the sampled list.
    The exact KL of each choice is summed over the choices that the list makes, which varies less than the difference
    of log probabilities.
    """
    labels = scores.shape[-1]
    left = torch.ones(labels, labels, dtype=torch.bool, device=scores.device).triu() & mask.unsqueeze(-2)
    # A row per choice; rows of padding have one label left, so that their KL is 0.
    left = left | torch.eye(labels, dtype=torch.bool, device=scores.device)
    now, start = (each.unsqueeze(-2).masked_fill(~left, PADDING).log_softmax(-1) for each in (scores, start_scores))
    difference = (now - start).masked_fill(~left, 0.0)
    return (now.exp() * difference).sum((-2, -1))


def clipped_policy_loss(
    log_probability: Tensor,
    old_log_probability: Tensor,
    advantage: Tensor,
    ratio_clip: float = 0.2,
    total: Total = this_process,
) -> Tensor:
    """PPO's clipped objective, negated: the mean over lists (Schulman et al. 2017, equation 7).

    Shapes: all [lists] float; the log probabilities of sampled lists now and at the rollout. `total` as in
    `ppo_losses`.
    """
    ratio = (log_probability - old_log_probability).exp()
    clipped = ratio.clamp(1 - ratio_clip, 1 + ratio_clip)
    return -mean(torch.minimum(ratio * advantage, clipped * advantage), total)


def reinforce_loss(log_probability: Tensor, advantage: Tensor, total: Total = this_process) -> Tensor:
    """REINFORCE's objective, negated: the mean over lists (Williams 1992). Shapes as of `clipped_policy_loss`."""
    return -mean(log_probability * advantage, total)
