"""Stage 3: improve the ranker (the actor) by the frozen reward model, with a critic as baseline."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

from lr2ppo.config.schema import PPOConfig, PPOLoss, PPOTraining
from lr2ppo.data.annotations import Clip
from lr2ppo.data.dataset import ClipBatch, ClipDataset, ClipRequest, collate
from lr2ppo.data.samplers import Draw, random_pairs, wrap_around
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.losses import PPOLosses, ppo_losses
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.stages.frozen_reward import FrozenReward, open_frozen_reward
from lr2ppo.training.checkpoint import ProcessState
from lr2ppo.training.learner import Learner
from lr2ppo.training.run import TrainingRun

# A dataclass of a `batch` and tensors with one row per clip.
R = TypeVar("R", bound=Any)


class Policy(Protocol[R]):
    """What stage 3 does with a batch: what a rollout collects, which models learn from it, and with which loss.

    The first of the `learners` is the ranker that the run trains. A `rollout` is a dataclass of a `batch` and tensors
    with one row per clip. `shown` is the logged value shown beside the progress bar.
    """

    @property
    def shown(self) -> str: ...

    @property
    def rollout(self) -> type[R]: ...

    @property
    def learners(self) -> Mapping[str, Learner[Any]]: ...

    @staticmethod
    def draw(clips: Sequence[Clip], settings: PPOTraining) -> Draw:
        """Return the sampler of an epoch's requests."""

    @classmethod
    def open(
        cls, run: TrainingRun[PPOConfig], ranker: RelevanceRanker, reward_model: PartialOrderModel, updates: int
    ) -> Self:
        """Set up a run's models to train for `updates` updates."""

    def roll_out(self, batch: ClipBatch) -> R:
        """Collect a rollout of the current weights on a batch."""

    def learn(self, rollout: R, is_first: bool) -> dict[str, float]:
        """Make one step of every learner; return values to log. `is_first`: no step was made since the rollout."""


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
        settings: PPOTraining,
        loss: PPOLoss,
    ) -> None:
        self.actor, self.critic, self.frozen_reward = actor, critic, frozen_reward
        self.learners: dict[str, Learner[Any]] = {"actor": actor, "critic": critic}
        self.loss = loss
        # The first step after a rollout of one batch has the rollout's weights, so it needs no second forward pass.
        self.reuses_rollout = settings.batches_per_rollout == 1 and settings.dropout == 0

    @staticmethod
    def draw(clips: Sequence[Clip], settings: PPOTraining) -> Draw:
        return random_pairs(clips, settings.pairs_per_clip, settings.visits_per_epoch)

    @classmethod
    def open(
        cls, run: TrainingRun[PPOConfig], ranker: RelevanceRanker, reward_model: PartialOrderModel, updates: int
    ) -> Self:
        config, settings = run.config, run.config.train
        # Free the reward model's encoder before actor and critic learn: their optimizers need its memory.
        cache, precision = config.logs / "cache", config.compute.precision
        features = run.fingerprints["features"]
        frozen_reward = open_frozen_reward(reward_model, run.clips, features, run.processes, precision, cache)
        critic_start = load_kind(run.sources["reward"] / "best", PartialOrderModel, settings.dropout)
        common = (config.compute, run.processes, config.safety.on_nonfinite)
        actor = Learner(ranker, settings.actor, settings.actor.schedule_updates or updates, *common)
        critic = Learner(critic_start, settings.critic, settings.critic.schedule_updates or updates, *common)
        return cls(actor, critic, frozen_reward, settings, config.loss)

    def roll_out(self, batch: ClipBatch) -> PairRollout:
        """Propose each pair's order by descending score, reward it, and estimate the value of the pair as given."""
        self.actor.model.eval()
        self.critic.model.eval()
        with torch.set_grad_enabled(self.reuses_rollout), self.actor.autocast():
            scores, value = self._scores_and_values(batch)
        proposed = scores.argsort(dim=-1, descending=True, stable=True)
        with self.actor.autocast():
            reward = self.frozen_reward(batch, torch.cat([batch.pairs, batch.pairs.gather(-1, proposed)], dim=-1))
        return PairRollout(batch, scores, proposed, reward, value)

    def learn(self, rollout: PairRollout, is_first: bool) -> dict[str, float]:
        """Make one step of actor and critic on a rollout; return values to log."""
        scores, value = rollout.scores, rollout.value
        if not (is_first and self.reuses_rollout):
            self.actor.model.train()
            self.critic.model.train()
            with self.actor.autocast():
                scores, value = self._scores_and_values(rollout.batch)
        losses = pair_losses(scores, value, rollout, self.loss, self.actor.processes)
        self.actor.step(losses.policy_loss, rollout.batch.ids)
        self.critic.step(losses.value_loss, rollout.batch.ids)
        return summarise(losses, rollout, value)

    def _scores_and_values(self, batch: ClipBatch) -> tuple[Tensor, Tensor]:
        """Compute the scores `[B, P, 2]` of each pair's labels as given, and the pair's value `[B, P]`."""
        scores = self.actor.parallel(**batch.inputs())
        value = self.critic.parallel(order=batch.pairs, **batch.inputs())
        return batch.pair_scores(scores), value


def train(
    config: PPOConfig, processes: Processes, fresh: bool, policy_type: type[Policy[Any]] = PartialOrderPolicy
) -> None:
    """Improve the ranker of stage 1 by the reward model of stage 2 (paper section 3.4)."""
    run = TrainingRun.open(config, processes, fresh)
    config = run.config
    ranker = load_kind(run.sources["ranker"] / "best", RelevanceRanker, config.train.dropout)
    reward_model = load_kind(run.sources["reward"] / "best", PartialOrderModel)
    batches = run.read(policy_type.draw(run.clips.clips, config.train), ranker, reward_model)
    updates = count_updates(batches, config)
    policy = policy_type.open(run, ranker, reward_model, updates)

    sources = f"actor {run.sources['ranker']}, reward model {run.sources['reward']}"
    headline = f"stage 3: {len(run.clips)} target clips, {updates} updates; {sources}"
    with run.training(policy.learners, updates, headline):
        with run.fitting():
            rollouts, steps_made = unpack_rollouts(policy.rollout, run.stored, run.clips, processes)
        if run.is_new:
            run.record_ndcg()
        if steps_made:
            update(run, policy, rollouts, steps_made)
        for batch in run.batches():
            rollouts.append(policy.roll_out(batch))
            if len(rollouts) == config.train.batches_per_rollout:
                update(run, policy, rollouts)
            run.save_checkpoint(partial(pack_rollouts, rollouts, 0), len(rollouts))


def update(run: TrainingRun[PPOConfig], policy: Policy[R], rollouts: list[R], steps_made: int = 0) -> None:
    """Learn from the stored rollouts, then clear them; a run that resumes skips the steps already made."""
    steps = rollouts * run.config.train.passes
    for number in range(steps_made, len(steps)):
        values = policy.learn(steps[number], is_first=number == 0)
        run.observe(values)
        if number + 1 < len(steps):
            run.save_checkpoint(partial(pack_rollouts, rollouts, number + 1), len(rollouts) + number + 1)
    for learner in policy.learners.values():
        learner.schedule.step()
    rollouts.clear()
    run.advance({policy.shown: values[policy.shown]})
    if run.evaluates:
        run.record_ndcg()


def count_updates(batches: int, config: PPOConfig) -> int:
    """Return how many updates `batches` batches make; raise `UserError` if none, or if gradients accumulate."""
    if config.compute.accumulate != 1:
        raise UserError(
            f"compute.accumulate: found {config.compute.accumulate}, wanted 1, because stage 3 makes one step per "
            "stored batch; set train.clips_per_batch instead"
        )
    updates = batches // config.train.batches_per_rollout
    if updates == 0:
        raise UserError(
            f"train.batches_per_rollout: found {config.train.batches_per_rollout}, but the run has "
            f"{batches} batches in all; wanted fewer, or more train.epochs"
        )
    return updates


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


def summarise(losses: PPOLosses, rollout: PairRollout, value: Tensor) -> dict[str, float]:
    """Return the values to log for a rollout's losses, as means over its pairs."""
    means = {
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
    stacked = torch.stack([tensor.detach().mean() for tensor in means.values()])
    return dict(zip(means, stacked.tolist(), strict=True))


# The fields of a batch in a checkpoint: enough to read its features again.
REQUESTED = ("clips", "labels", "label_mask", "pairs", "seeds")


def pack_rollouts(rollouts: Sequence[R], steps_made: int) -> ProcessState:
    """Pack rollouts for a checkpoint, with the number of steps made in their update."""
    tensors = {}
    for number, rollout in enumerate(rollouts):
        for name in _outcomes(type(rollout)):
            tensors[f"{number}.{name}"] = getattr(rollout, name).detach()
        for name in REQUESTED:
            tensors[f"{number}.{name}"] = getattr(rollout.batch, name)
    return ProcessState(stored={"rollouts": len(rollouts), "learned": steps_made}, tensors=tensors)


def unpack_rollouts(
    kind: type[R], states: Sequence[ProcessState], dataset: ClipDataset, processes: Processes
) -> tuple[list[R], int]:
    """Restore this process's rollouts and the number of steps made, from the stored states of all processes.

    Every stored clip is restored by a process, and all have equally many: a few may be restored twice.
    """
    stored = states[0].stored
    if not stored:
        return [], 0
    rollouts = []
    for number in range(stored["rollouts"]):
        requests = [request for state in states for request in _requests(state.tensors, number)]
        rows = wrap_around(range(len(requests)), processes.world_size)
        share = len(rows) // processes.world_size
        own = rows[processes.rank * share : (processes.rank + 1) * share]
        tensors = {
            name: torch.cat([state.tensors[f"{number}.{name}"] for state in states])[own].to(processes.device)
            for name in _outcomes(kind)
        }
        batch = collate([dataset[requests[row]] for row in own]).to(processes.device)
        rollouts.append(kind(batch=batch, **tensors))
    return rollouts, stored["learned"]


def _outcomes(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind) if field.name != "batch"]


def _requests(tensors: Mapping[str, Tensor], number: int) -> list[ClipRequest]:
    clips, labels, mask, pairs, seeds = (tensors[f"{number}.{name}"] for name in REQUESTED)
    return [
        ClipRequest(int(clip), own[real].numpy(), pairs=shown.numpy(), seed=int(seed))
        for clip, own, real, shown, seed in zip(clips, labels, mask, pairs, seeds, strict=True)
    ]
