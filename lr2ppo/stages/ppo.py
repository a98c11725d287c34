"""Stage 3: improve the ranker (the actor) by rewards, with the policy that its config names."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lr2ppo.config.schema import PPOConfig
from lr2ppo.data.dataset import ClipBatch, ClipDataset, ClipRequest
from lr2ppo.data.samplers import wrap_around
from lr2ppo.distributed.processes import Processes, autocast
from lr2ppo.errors import UserError
from lr2ppo.evaluation.scoring import score_clips
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.ops.linear import use_fast_linear
from lr2ppo.policies import POLICIES
from lr2ppo.policies.policy import ListReward, Policy, Reward, StartScores
from lr2ppo.training.checkpoint import ProcessState
from lr2ppo.training.run import TrainingRun

# A dataclass of a `batch` and tensors with one row per clip.
R = TypeVar("R", bound=Any)


def train(
    config: PPOConfig,
    processes: Processes,
    fresh: bool,
    policy_type: type[Policy[Any]] | None = None,
    reward: ListReward | None = None,
) -> None:
    """Improve a ranker by the reward model of stage 2 (paper section 3.4), or by `reward`, a function of lists.

    `policy_type` takes the place of the policy that the config names.
    """
    run = TrainingRun.open(config, processes, fresh)
    config = run.config
    policy_type = policy_type or POLICIES[config.policy.name]
    ranker = load_kind(run.sources["ranker"] / "best", RelevanceRanker, config.train.dropout)
    ranker.encoder.requires_grad_(not config.train.frozen_trunk)
    models: list[RelevanceRanker | PartialOrderModel] = [ranker]
    source: Reward = reward
    if source is None and "reward" in run.sources:
        source = load_kind(run.sources["reward"] / "best", PartialOrderModel)
        models.append(source)
    batches = run.read(policy_type.draw(run.clips.clips, config), *models)
    updates = count_updates(batches, config)
    policy = policy_type.open(run, ranker, source, score_start(run, ranker), updates)

    rewarded_by = f"reward model {run.sources['reward']}" if "reward" in run.sources else "rewards without a model"
    sources = f"actor {run.sources['ranker']}, {rewarded_by}"
    headline = f"stage 3: {len(run.clips)} target clips, {updates} updates; {sources}"
    with run.training(policy.learners, updates, headline):
        with run.fitting():
            rollouts, steps_made = unpack_rollouts(policy.rollout, run.stored, run.clips, processes)
        if run.is_new:
            run.record_ndcg(config.train.standard_errors)
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
        run.observe(policy.learn(steps[number], is_first=number == 0))
        if number + 1 < len(steps):
            run.save_checkpoint(partial(pack_rollouts, rollouts, number + 1), len(rollouts) + number + 1)
    for learner in policy.learners.values():
        learner.schedule.step()
    rollouts.clear()
    run.advance(policy.shown)
    if run.evaluates:
        run.record_ndcg(run.config.train.standard_errors)


def score_start(run: TrainingRun[PPOConfig], ranker: RelevanceRanker) -> StartScores:
    """Score all labels once by the ranker that the actor starts from, and look them up for each batch.

    Frames in random order are those of evaluation.
    """
    use_fast_linear(ranker).to(run.processes.device)
    with autocast(run.config.compute.precision, run.processes.device):
        scores = score_clips(ranker, run.clips, run.processes, run.config.train.clips_per_batch)
    rows = [torch.from_numpy(own).float() for own in scores]
    table = pad_sequence(rows, batch_first=True).to(run.processes.device)

    def look_up(batch: ClipBatch) -> Tensor:
        return table[batch.clips.unsqueeze(1), batch.labels]

    return look_up


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
        batch = dataset.collate([dataset[requests[row]] for row in own]).to(processes.device)
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
