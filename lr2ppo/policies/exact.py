"""The exact policy: a pair has two orders, so advantage, baseline and gradient need no sample and no critic."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit
from torch import Tensor

from lr2ppo.config.schema import Exact, PPOConfig
from lr2ppo.data.annotations import Clip, better_worse_pairs, graded
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.data.samplers import Draw, random_pairs
from lr2ppo.distributed.processes import autocast
from lr2ppo.evaluation.scoring import Scores, clip_margins, mean_margins, score_clips
from lr2ppo.losses import exact_policy_loss
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.policies.frozen_reward import FrozenReward, check_reward_model, open_run_reward
from lr2ppo.policies.policy import Reward, StartScores, log_means, open_learner
from lr2ppo.runs.records import STEEPEST
from lr2ppo.training.learner import Learner
from lr2ppo.training.replay import Replayed
from lr2ppo.training.run import TrainingRun, Values

# From hardly anything but the reward model to hardly a step away from the start.
KL_WEIGHTS = (0.1, 10.0)


@dataclass(frozen=True)
class JudgedPairs:
    """A rollout over the label pairs of a batch, without anything sampled.

    margin [B, P]: the reward of a pair's order as shown minus that of the other; start_difference [B, P]: the start's
    score of its first label minus that of the second.
    """

    batch: ClipBatch
    margin: Tensor
    start_difference: Tensor


class ExactPolicy:
    """Raise the expected advantage of each pair's two orders, at a cost for moving away from the start."""

    rollout = JudgedPairs
    shown = "reward"

    def __init__(
        self,
        actor: Learner[RelevanceRanker],
        frozen_reward: FrozenReward,
        start_scores: StartScores,
        kl_weight: float,
    ) -> None:
        self.actor, self.frozen_reward, self.start_scores = actor, frozen_reward, start_scores
        self.learners: dict[str, Learner[Any]] = {"actor": actor}
        self.kl_weight = kl_weight
        self._judge, self._improve = Replayed(self._compare, actor), Replayed(self._step, actor)

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
        policy = run.config.policy
        if not isinstance(policy, Exact):
            raise TypeError(f"policy.name: found {policy.name}, wanted exact")
        # Before the reward model's encoder is freed.
        kl_weight = policy.kl_weight or choose_kl_weight(run, ranker, check_reward_model(run, reward))
        frozen_reward = open_run_reward(run, reward)
        return cls(open_learner(run, ranker, run.config.train.actor, updates), frozen_reward, start_scores, kl_weight)

    def roll_out(self, batch: ClipBatch) -> JudgedPairs:
        """Judge both orders of each pair by the reward model and by the start."""
        return JudgedPairs(batch, **self._judge(batch))

    def learn(self, rollout: JudgedPairs, is_first: bool) -> Values:
        """Make one step of the actor on a rollout; return values to log."""
        values = self._improve(rollout)
        self.actor.count(rollout.batch.ids)
        return values | {"kl_weight": self.kl_weight}

    def _compare(self, batch: ClipBatch) -> dict[str, Tensor]:
        first, second = batch.pair_scores(self.start_scores(batch)).unbind(-1)
        with self.actor.autocast():
            margin = self.frozen_reward.margin(batch, batch.pairs)
        return {"margin": margin.float(), "start_difference": first - second}

    def _step(self, rollout: JudgedPairs) -> dict[str, Tensor]:
        self.actor.model.train()
        with self.actor.autocast():
            first, second = rollout.batch.pair_scores(self.actor.parallel(**rollout.batch.inputs())).unbind(-1)
        losses = exact_policy_loss(
            difference=(first - second).flatten(),
            start_difference=rollout.start_difference.flatten(),
            margin=rollout.margin.flatten(),
            kl_weight=self.kl_weight,
            total=self.actor.processes.all_reduce,
        )
        self.actor.backward(losses.policy_loss)
        values = {
            "policy_loss": losses.policy_loss,
            # Expected, above the mean of both orders.
            "reward": losses.advantage,
            "kl_to_start": losses.kl_to_start,
            "agreement": ((first > second) == (rollout.margin > 0)).float(),
        }
        return log_means(values)


def choose_kl_weight(run: TrainingRun[PPOConfig], ranker: RelevanceRanker, reward_model: PartialOrderModel) -> float:
    """Return the KL weight whose best policy predicts the validation clips' grades best."""
    processes, batch_size = run.processes, run.config.train.clips_per_batch
    with autocast(run.config.compute.precision, processes.device):
        scores = score_clips(ranker.to(processes.device), run.validation, processes, batch_size)
        margins = clip_margins(reward_model.to(processes.device), run.validation, processes, batch_size)
    grades = [graded(clip) for clip in run.validation.clips]
    return fit_kl_weight(scores, [mean_margins(own) for own in margins], grades)


def fit_kl_weight(scores: Sequence[Scores], margins: Sequence[Scores], grades: Sequence[NDArray[np.int64]]) -> float:
    """Fit the KL weight whose best policy gives the highest likelihood to the order of labels of different grades.

    Shapes, one entry per clip, each [labels]: the start's scores, mean margins and grades. The best policy is known
    before training: a pair's score difference is that of the start plus the margin over the KL weight
    (`exact_policy_loss`). So this is logistic regression on both differences, with weights of at least 0, and the KL
    weight is the ratio of its two weights, within `KL_WEIGHTS`. Each clip counts alike, whatever its number of pairs.
    """
    differences, shares = [], []
    for own_scores, own_margins, own_grades in zip(scores, margins, grades, strict=True):
        better, worse = better_worse_pairs(own_grades).T
        both = np.stack([own_scores, own_margins]).astype(np.float64)
        differences.append(both[:, better] - both[:, worse])
        shares.append(np.full(len(better), 1 / max(len(better), 1)))
    features, share = np.concatenate(differences, 1), np.concatenate(shares) / len(shares)
    scale = np.sqrt(np.square(features) @ share)
    scale[scale == 0] = 1
    features /= scale[:, None]

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """The negative log-likelihood, and its gradient."""
        logits = weights @ features
        return float(-log_expit(logits) @ share), -features @ (share * expit(-logits))

    found = minimize(loss, [1.0, 1.0], jac=True, method="L-BFGS-B", bounds=[(0, STEEPEST)] * 2)
    of_start, of_margin = found.x / scale
    return float(np.clip(of_start / of_margin if of_margin > 0 else np.inf, *KL_WEIGHTS))
