"""Losses of stage 3, over the pairs of a rollout."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lr2ppo.losses.reduction import Total, mean, this_process


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
