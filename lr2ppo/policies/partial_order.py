"""The published policy: propose and reward each pair's order, with a critic as baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from lr2ppo.config.schema import PPOConfig, PPOLoss, PPOTraining
from lr2ppo.data.annotations import Clip
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.data.samplers import Draw, random_pairs
from lr2ppo.distributed.processes import Processes
from lr2ppo.losses import PPOLosses, ppo_losses
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.ops.streams import SideStream
from lr2ppo.policies.frozen_reward import FrozenReward, open_run_reward
from lr2ppo.policies.policy import Reward, StartScores, log_means, open_learner
from lr2ppo.training.learner import Learner
from lr2ppo.training.replay import Replayed
from lr2ppo.training.run import TrainingRun, Values


@dataclass(frozen=True)
class PairRollout:
    """A rollout over the label pairs of a batch.

    scores [B, P, 2]; proposed [B, P, 2], the positions 0 and 1 in the proposed order; reward, value [B, P].
    """

    batch: ClipBatch
    scores: Tensor
    proposed: Tensor
    reward: Tensor
    value: Tensor


class PartialOrderPolicy:
    """The paper's policy: propose and reward each pair's order; keep or reverse it by its advantage (section 3.4)."""

    rollout = PairRollout
    shown = "reward"

    def __init__(
        self,
        actor: Learner[RelevanceRanker],
        critic: Learner[PartialOrderModel],
        frozen_reward: FrozenReward,
        start_scores: StartScores,
        settings: PPOTraining,
        loss: PPOLoss,
    ) -> None:
        self.actor, self.critic, self.frozen_reward, self.start_scores = actor, critic, frozen_reward, start_scores
        self.learners: dict[str, Learner[Any]] = {"actor": actor, "critic": critic}
        self.loss = loss
        # The first step after a rollout of one batch has the rollout's weights, so it needs no second forward pass.
        self.reuses_rollout = settings.batches_per_rollout == 1 and settings.dropout == 0 and not actor.can_replay
        # One model's products beside the other's passes over its weights.
        self._side = SideStream(actor.processes.device)
        self._propose, self._improve = Replayed(self._rank, actor, critic), Replayed(self._step, actor, critic)

    @classmethod
    def draw(cls, clips: Sequence[Clip], config: PPOConfig) -> Draw:
        return random_pairs(clips, config.train.pairs_per_clip, config.train.visits_per_epoch)

    @classmethod
    def open(
        cls,
        run: TrainingRun[PPOConfig],
        ranker: RelevanceRanker,
        reward: Reward,
        start_scores: StartScores,
        updates: int,
    ) -> Self:
        config, settings = run.config, run.config.train
        # Free the reward model's encoder before actor and critic learn: their optimizers need its memory.
        frozen_reward = open_run_reward(run, reward)
        critic_start = load_kind(run.sources["reward"] / "best", PartialOrderModel, settings.dropout)
        actor = open_learner(run, ranker, settings.actor, updates)
        critic = open_learner(run, critic_start, settings.critic or settings.actor, updates)
        return cls(actor, critic, frozen_reward, start_scores, settings, config.loss or PPOLoss())

    def roll_out(self, batch: ClipBatch) -> PairRollout:
        """Propose each pair's order by descending score, reward it, and estimate the value of the pair as given."""
        return PairRollout(batch, **self._propose(batch))

    def learn(self, rollout: PairRollout, is_first: bool) -> Values:
        """Make one step of actor and critic on a rollout; return values to log."""
        if is_first and self.reuses_rollout:
            values = self._step_from(rollout, rollout.scores, rollout.value)
        else:
            values = self._improve(rollout)
        for learner in self.learners.values():
            learner.count(rollout.batch.ids)
        return values

    def _rank(self, batch: ClipBatch) -> dict[str, Tensor]:
        self.actor.model.eval()
        self.critic.model.eval()
        with torch.set_grad_enabled(self.reuses_rollout), self.actor.autocast():
            scores, value = self._scores_and_values(batch)
        proposed = scores.argsort(dim=-1, descending=True, stable=True)
        with self.actor.autocast():
            reward = self.frozen_reward(batch, torch.cat([batch.pairs, batch.pairs.gather(-1, proposed)], dim=-1))
        return {"scores": scores, "proposed": proposed, "reward": reward, "value": value}

    def _step(self, rollout: PairRollout) -> dict[str, Tensor]:
        self.actor.model.train()
        self.critic.model.train()
        with self.actor.autocast():
            scores, value = self._scores_and_values(rollout.batch)
        return self._step_from(rollout, scores, value)

    def _step_from(self, rollout: PairRollout, scores: Tensor, value: Tensor) -> dict[str, Tensor]:
        losses = pair_losses(scores, value, rollout, self.loss, self.actor.processes)
        with self._side.beside():
            self.actor.backward(losses.policy_loss)
        self.critic.backward(losses.value_loss)
        self._side.join()
        with torch.no_grad():
            started = rollout.batch.pair_scores(self.start_scores(rollout.batch)).log_softmax(-1)
            log_policy = scores.log_softmax(-1)
            kl_to_start = (log_policy.exp() * (log_policy - started)).sum(-1).mean()
        return summarise(losses, rollout, value) | {"kl_to_start": kl_to_start}

    def _scores_and_values(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Compute the scores `[B, P, 2]` of each pair's labels as given, and the pair's value `[B, P]`."""
        with self._side.beside():
            scores = self.actor.parallel(**batch.inputs())
        value = self.critic.parallel(order=batch.pairs, **batch.inputs())
        self._side.join()
        return batch.pair_scores(scores), value


def pair_losses(scores: Tensor, value: Tensor, rollout: PairRollout, loss: PPOLoss, processes: Processes) -> PPOLosses:
    """Compute the losses of a rollout from the current scores and values, over all its pairs."""
    return ppo_losses(
        scores=scores.flatten(0, 1),
        old_scores=rollout.scores.detach().flatten(0, 1),
        proposed=rollout.proposed.flatten(0, 1),
        reward=rollout.reward.flatten(),
        value=value.flatten(),
        old_value=rollout.value.detach().flatten(),
        total=processes.all_reduce,
        **loss.model_dump(),
    )


def summarise(losses: PPOLosses, rollout: PairRollout, value: Tensor) -> dict[str, Tensor]:
    """Return the values to log for a rollout's losses, as means over its pairs."""
    values = {
        "policy_loss": losses.policy_loss,
        "value_loss": losses.value_loss,
        "rank_loss": losses.rank_loss,
        "reward": rollout.reward,
        "penalised_reward": losses.penalised_reward,
        "value": value,
        "old_value": rollout.value,
        "advantage": losses.advantage,
        "kl": losses.kl_penalty,
        "entropy": losses.entropy,
        "reversed": losses.reversed_order.float(),
    }
    return log_means(values)
