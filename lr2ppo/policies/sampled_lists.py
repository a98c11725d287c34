"""Plackett-Luce policies: sample orders of a clip's labels, reward them as lists, and make the better ones likelier."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lr2ppo.config.schema import GRPO, PlackettLuce, PPOConfig, Reinforce
from lr2ppo.data.annotations import Clip
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.data.samplers import Draw, random_lists
from lr2ppo.losses import clipped_policy_loss, list_kl, list_log_probabilities, reinforce_loss
from lr2ppo.losses.reduction import mean
from lr2ppo.models import RelevanceRanker
from lr2ppo.policies.list_rewards import open_list_reward
from lr2ppo.policies.policy import BatchReward, Reward, StartScores, log_means, open_learner
from lr2ppo.training.learner import Learner
from lr2ppo.training.replay import Replayed
from lr2ppo.training.run import TrainingRun, Values

ListSettings = PlackettLuce | GRPO | Reinforce


@dataclass(frozen=True)
class ListRollout:
    """A rollout of sampled orders: K labels of each clip, G orders of them.

    lists [B, G, K] long: positions in the batch's labels, padding last; log_probability, reward, advantage [B, G].
    """

    batch: ClipBatch
    lists: Tensor
    log_probability: Tensor
    reward: Tensor
    advantage: Tensor


class ListPolicy:
    """PPO with a clipped ratio, GRPO, or REINFORCE, over orders sampled from a Plackett-Luce policy."""

    rollout = ListRollout
    shown = "reward"

    def __init__(
        self,
        actor: Learner[RelevanceRanker],
        reward: BatchReward,
        start_scores: StartScores,
        policy: ListSettings,
    ) -> None:
        self.actor, self.reward, self.start_scores, self.policy = actor, reward, start_scores, policy
        self.learners: dict[str, Learner[Any]] = {"actor": actor}
        self._improve = Replayed(self._step, actor)

    @classmethod
    def draw(cls, clips: Sequence[Clip], config: PPOConfig) -> Draw:
        return random_lists(clips, _require_lists(config).labels_per_list, config.train.visits_per_epoch)

    @classmethod
    def open(
        cls,
        run: TrainingRun[PPOConfig],
        ranker: RelevanceRanker,
        reward: Reward,
        start_scores: StartScores,
        updates: int,
    ) -> Self:
        policy = _require_lists(run.config)
        list_reward = open_list_reward(run, reward, policy)
        return cls(open_learner(run, ranker, run.config.train.actor, updates), list_reward, start_scores, policy)

    def roll_out(self, batch: ClipBatch) -> ListRollout:
        """Sample orders of each clip's labels by the current scores, and reward each of them."""
        self.actor.model.eval()
        with torch.no_grad(), self.actor.autocast():
            scores = self.actor.parallel(**batch.inputs()).float()
        mask = self._pad(batch.label_mask, False)
        lists = sample_orders(self._pad(scores, 0.0) / self.policy.temperature, mask, batch.seeds, self._lists)
        log_probability = list_log_probabilities(self._in_order(scores, lists), self._mask(batch))
        with self.actor.autocast():
            reward = self.reward(batch, lists, mask).float()
        return ListRollout(batch, lists, log_probability, reward, self._advantage(batch, scores, reward, mask))

    def learn(self, rollout: ListRollout, is_first: bool) -> Values:
        """Make one step of the actor on a rollout; return values to log."""
        values = self._improve(rollout)
        self.actor.count(rollout.batch.ids)
        return values

    def _step(self, rollout: ListRollout) -> dict[str, Tensor]:
        batch, mask, total = rollout.batch, self._mask(rollout.batch), self.actor.processes.all_reduce
        self.actor.model.train()
        with self.actor.autocast():
            scores = self.actor.parallel(**batch.inputs())
        ordered = self._in_order(scores.float(), rollout.lists)
        log_probability, advantage = list_log_probabilities(ordered, mask).flatten(), rollout.advantage.flatten()
        if isinstance(self.policy, Reinforce):
            policy_loss = reinforce_loss(log_probability, advantage, total)
        else:
            old = rollout.log_probability.flatten()
            policy_loss = clipped_policy_loss(log_probability, old, advantage, self.policy.ratio_clip, total)
        kl = list_kl(ordered, self._in_order(self.start_scores(batch), rollout.lists), mask)
        self.actor.backward(policy_loss + self.policy.kl_weight * mean(kl.flatten(), total))
        values = {
            "policy_loss": policy_loss,
            "reward": rollout.reward,
            "kl_to_start": kl,
            "ratio": (log_probability - rollout.log_probability.flatten()).exp(),
        }
        return log_means(values)

    @property
    def _lists(self) -> int:
        return self.policy.lists_per_clip

    def _advantage(self, batch: ClipBatch, scores: Tensor, reward: Tensor, mask: Tensor) -> Tensor:
        """The rewards [B, G] minus a baseline that does not depend on the list's own reward, except in GRPO."""
        if isinstance(self.policy, Reinforce):
            # Of the order by descending score (Rennie et al. 2017).
            best = self._pad(scores, 0.0).masked_fill(~mask, -torch.inf).argsort(dim=-1, descending=True, stable=True)
            with self.actor.autocast():
                return reward - self.reward(batch, best.unsqueeze(1), mask).float()
        if isinstance(self.policy, GRPO):
            # Of the group (Shao et al. 2024); lists of equal rewards teach nothing.
            return (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-6)
        # The mean of the clip's other lists (Kool et al. 2019).
        return (reward - reward.mean(1, keepdim=True)) * self._lists / (self._lists - 1)

    def _in_order(self, scores: Tensor, lists: Tensor) -> Tensor:
        """The scores [B, L] over the temperature, in the order of lists [B, G, K]: [B, G, K]."""
        padded = self._pad(scores, 0.0) / self.policy.temperature
        return padded.unsqueeze(1).expand(-1, lists.shape[1], -1).gather(-1, lists)

    def _mask(self, batch: ClipBatch) -> Tensor:
        """Which places of a clip's lists hold labels, the same for all its lists: [B, G, K]."""
        return self._pad(batch.label_mask, False).unsqueeze(1).expand(-1, self._lists, -1)

    def _pad(self, values: Tensor, value: float) -> Tensor:
        """Pad [B, L] to [B, K], so that rollouts of all batches and processes have one width."""
        return torch.nn.functional.pad(values, (0, self.policy.labels_per_list - values.shape[1]), value=value)


def _require_lists(config: PPOConfig) -> ListSettings:
    if not isinstance(config.policy, PlackettLuce | GRPO | Reinforce):
        raise TypeError(f"policy.name: found {config.policy.name}, wanted plackett_luce, grpo or reinforce")
    return config.policy


def sample_orders(scores: Tensor, mask: Tensor, seeds: Tensor, lists: int) -> Tensor:
    """Sample orders from the Plackett-Luce distribution of scores, by Gumbel noise: [B, lists, K] long, padding last.

    Shapes: scores, mask: [B, K]; seeds: [B]. The noise of a clip depends on its seed only, so that it is the same in
    any number of processes.
    """
    shape = (lists, scores.shape[1])
    noise = np.stack([np.random.default_rng(seed).gumbel(size=shape) for seed in seeds.tolist()])
    keys = scores.unsqueeze(1) + torch.from_numpy(noise).to(scores)
    orders: Tensor = keys.masked_fill(~mask.unsqueeze(1), -torch.inf).argsort(dim=-1, descending=True, stable=True)
    return orders
