"""Rewards of whole lists: by the reward model's pairs, by an NDCG, or by a function of the user."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lr2ppo.config.schema import PPOConfig, SampledLists
from lr2ppo.data.annotations import Clip
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.evaluation.scoring import preference_table
from lr2ppo.ops.dcg import dcg, gains, ideal_dcg
from lr2ppo.policies.frozen_reward import FrozenReward, open_run_reward
from lr2ppo.policies.policy import BatchReward, ListReward, Reward
from lr2ppo.training.run import TrainingRun

# The highest grade, which a label that wins every pair is expected to have.
TOP_GRADE = 2.0


def open_list_reward(run: TrainingRun[PPOConfig], reward: Reward, policy: SampledLists) -> BatchReward:
    """Open what rewards the lists of a run: a function if one is given, else what its config names."""
    if callable(reward) and not isinstance(reward, torch.nn.Module):
        return FunctionReward(reward, run.clips.clips)
    if policy.reward == "grades":
        return reward_by_grades
    return ModelReward(open_run_reward(run, reward), by_ndcg=policy.reward == "ndcg")


@dataclass(frozen=True)
class ModelReward:
    """The reward of a list under a reward model: the mean over its pairs, or the NDCG that it expects.

    Of a pair, the reward is the probability that people prefer the list's order of it. By NDCG, a label's expected
    grade is its mean probability to be preferred to another one, times the highest grade.
    """

    frozen_reward: FrozenReward
    by_ndcg: bool

    def __call__(self, batch: ClipBatch, lists: Tensor, mask: Tensor) -> Tensor:
        """Return the rewards [B, G] of lists [B, G, K]."""
        preferred = preference_matrix(self.frozen_reward, batch, lists.shape[-1])
        others = mask.unsqueeze(1) & mask.unsqueeze(2) & ~torch.eye(len(mask[0]), dtype=torch.bool, device=mask.device)
        if self.by_ndcg:
            wins = preferred.where(others, 0.0).sum(-1) / others.sum(-1).clamp(min=1)
            return expected_ndcg(TOP_GRADE * wins, lists, mask)
        groups = lists.shape[1]
        rows = preferred.where(others, 0.0).unsqueeze(1).expand(-1, groups, -1, -1)
        rows = rows.gather(2, lists.unsqueeze(-1).expand(-1, -1, -1, lists.shape[-1]))
        in_order = rows.gather(3, lists.unsqueeze(2).expand(-1, -1, lists.shape[-1], -1))
        pairs = mask.sum(-1) * (mask.sum(-1) - 1) / 2
        rewards: Tensor = in_order.triu(1).sum((-2, -1)) / pairs.clamp(min=1).unsqueeze(1)
        return rewards


@torch.no_grad()
def preference_matrix(frozen_reward: FrozenReward, batch: ClipBatch, width: int) -> Tensor:
    """Return the probability that people prefer each label to each other one, 0 on padding: [B, width, width]."""
    table = preference_table(frozen_reward.model, frozen_reward.encode(batch), temperature=1.0).float()
    more = width - table.shape[-1]
    return F.pad(table, (0, more, 0, more))


def reward_by_grades(batch: ClipBatch, lists: Tensor, mask: Tensor) -> Tensor:
    """Return the NDCG of lists [B, G, K] by the grades of their clips: [B, G]."""
    grades = F.pad(batch.grades, (0, mask.shape[1] - batch.grades.shape[1]))
    return expected_ndcg(grades, lists, mask)


def expected_ndcg(grades: Tensor, lists: Tensor, mask: Tensor) -> Tensor:
    """Return the NDCG of lists [B, G, K] of labels with grades [B, K], 1 where all are 0: [B, G]."""
    gain = gains(grades, mask)
    ideal = ideal_dcg(gain, None).unsqueeze(1)
    found = dcg(gain.unsqueeze(1).expand(-1, lists.shape[1], -1).gather(-1, lists), None)
    return torch.where(ideal > 0, found / ideal.clamp(min=1e-9), 1.0)


@dataclass(frozen=True)
class FunctionReward:
    """The reward of a list by a function of the user."""

    function: ListReward
    clips: Sequence[Clip]

    def __call__(self, batch: ClipBatch, lists: Tensor, mask: Tensor) -> Tensor:
        """Return the rewards [B, G] of lists [B, G, K]."""
        rewards = [
            [self._reward(self.clips[clip], own[order[: int(count)]].tolist()) for order in orders]
            for clip, own, orders, count in zip(
                batch.clips.tolist(), batch.labels.cpu(), lists.cpu(), mask.sum(1), strict=True
            )
        ]
        return torch.tensor(rewards, device=lists.device)

    def _reward(self, clip: Clip, positions: Sequence[int]) -> float:
        return float(self.function(clip, [clip.labels[position] for position in positions]))
