"""Stage 3: the frozen reward model's judgement improves the ranker (the actor), with a critic as baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lr2ppo.config.schema import PPOConfig, PPOLoss
from lr2ppo.data.annotations import Need
from lr2ppo.data.dataset import ClipBatch, ClipDataset, ClipRequest, collate, open_store
from lr2ppo.data.samplers import random_pairs
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.evaluation.scoring import validation_ndcg
from lr2ppo.losses.policy import PPOLosses, ppo_losses
from lr2ppo.losses.reduction import Total, this_process
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.runs.lookup import find_earlier
from lr2ppo.stages.frozen_reward import FrozenJudge, open_judge
from lr2ppo.training.checkpoint import Own
from lr2ppo.training.inputs import check_fit, left_out_note, open_inputs, overlap_note
from lr2ppo.training.learner import Learner
from lr2ppo.training.run_folder import Run, claim_run
from lr2ppo.training.trainer import Session, open_batches

OUTCOMES = ("scores", "proposed", "reward", "value")
DRAWN = ("clips", "labels", "label_mask", "pairs", "seeds")


@dataclass(frozen=True)
class Rollout:
    """What the weights of the rollout did on a batch, over its pairs.

    scores [B, P, 2]; proposed [B, P, 2], the positions 0 and 1 in the proposed order; reward, value [B, P].
    """

    batch: ClipBatch
    scores: Tensor
    proposed: Tensor
    reward: Tensor
    value: Tensor


def pack_rollouts(rollouts: Sequence[Rollout], learned: int) -> Own:
    """Stored rollouts, of which `learned` steps were made; of their features only what to read again."""
    tensors = {}
    for number, rollout in enumerate(rollouts):
        for name in OUTCOMES:
            tensors[f"{number}.{name}"] = getattr(rollout, name).detach()
        for name in DRAWN:
            tensors[f"{number}.{name}"] = getattr(rollout.batch, name)
    return Own(stored={"rollouts": len(rollouts), "learned": learned}, tensors=tensors)


def unpack_rollouts(owns: Sequence[Own], dataset: ClipDataset, processes: Processes) -> tuple[list[Rollout], int]:
    """This process's rollouts and how many steps were made of them, from what every process of the run had stored."""
    stored: dict[str, Any] = owns[0].stored
    if not stored:
        return [], 0
    rank, world_size = processes.rank, processes.world_size
    rollouts = []
    for number in range(stored["rollouts"]):
        requests = [request for own in owns for request in _requests(own.tensors, number)]
        share = len(requests) // world_size
        mine = slice(rank * share, (rank + 1) * share)
        outcomes = {name: torch.cat([own.tensors[f"{number}.{name}"] for own in owns])[mine] for name in OUTCOMES}
        batch = collate([dataset[request] for request in requests[mine]]).to(processes.device)
        rollouts.append(Rollout(batch, **{name: outcome.to(processes.device) for name, outcome in outcomes.items()}))
    return rollouts, stored["learned"]


def _requests(tensors: dict[str, Tensor], number: int) -> list[ClipRequest]:
    clips, labels, mask, pairs, seeds = (tensors[f"{number}.{name}"] for name in DRAWN)
    return [
        ClipRequest(int(clip), own[real].numpy(), pairs=shown.numpy(), seed=int(seed))
        for clip, own, real, shown, seed in zip(clips, labels, mask, pairs, seeds, strict=True)
    ]


def train(config: PPOConfig, processes: Processes, fresh: bool) -> None:
    start = claim_run(config, processes, fresh)
    config = start.config
    ranker_run = find_earlier(config.ranker, "pointwise", config.preset, config.logs)
    reward_run = find_earlier(config.reward, "reward", config.preset, config.logs)
    config = config.model_copy(update={"ranker": str(ranker_run), "reward": str(reward_run)})
    settings, compute = config.train, config.compute
    if compute.accumulate != 1:
        raise UserError(
            f"compute.accumulate: found {compute.accumulate}, wanted 1, for stage 3 makes a step of each stored batch; "
            "set train.clips_per_batch instead"
        )
    ranker = load_kind(ranker_run / "best", RelevanceRanker, settings.dropout)
    reward_model = load_kind(reward_run / "best", PartialOrderModel)
    store = open_store(config.data)
    for model, source in ((ranker, ranker_run), (reward_model, reward_run)):
        check_fit(model.encoder.config, store, config.data.frames, str(source))
    files: list[tuple[str, Need]] = [(config.data.train, "labels"), (config.data.validation, "grades")]
    clips, validation = open_inputs(config.data, files, store, ranker.encoder.config, processes)
    draw = random_pairs(clips.clips, settings.pairs_per_clip, settings.visits_per_epoch)
    sampler, loader = open_batches(start, clips, draw, processes)
    batches = settings.epochs * len(sampler)
    updates = batches // settings.batches_per_rollout
    if updates == 0:
        raise UserError(
            f"train.batches_per_rollout: found {settings.batches_per_rollout}, but the run has "
            f"{batches} batches in all; wanted fewer, or more train.epochs"
        )
    run = Run(config, processes, start, store)
    # The reward model's encoder is done with before actor and critic learn: their optimizers want its memory.
    judge = open_judge(reward_model, clips, processes, compute.precision, config.logs / "cache")
    critic_start = load_kind(reward_run / "best", PartialOrderModel, settings.dropout)
    bad = config.safety.on_nonfinite
    actor = Learner(ranker, settings.actor, settings.actor.schedule_updates or updates, compute, processes, bad)
    critic = Learner(
        critic_start, settings.critic, settings.critic.schedule_updates or updates, compute, processes, bad
    )
    run.say(
        f"stage 3: {len(clips)} target clips, {updates} updates; actor {ranker_run}, reward model {reward_run}"
        + overlap_note(clips, validation)
        + left_out_note(clips, validation)
    )

    learners: dict[str, Learner[Any]] = {"actor": actor, "critic": critic}
    with Session(run, start, sampler, loader, learners, updates, processes) as session:
        improvement = Improvement(config, session, actor, critic, clips, validation)
        if start.checkpoint is None:
            improvement.evaluate()
        improvement.go_on()
        for batch in session.batches():
            improvement.collect(batch.to(processes.device), judge)
    session.finish({"": actor.save, "critic": critic.save})


class Improvement:
    """The loop of stage 3: rollouts are stored, and once there are enough, actor and critic learn from them."""

    def __init__(
        self,
        config: PPOConfig,
        session: Session,
        actor: Learner[RelevanceRanker],
        critic: Learner[PartialOrderModel],
        clips: ClipDataset,
        validation: ClipDataset,
    ) -> None:
        self.settings, self.loss, self.session = config.train, config.loss, session
        self.actor, self.critic, self.clips, self.validation = actor, critic, clips, validation
        self.rollouts, self._learned = unpack_rollouts(session.owns, clips, actor.processes)
        # The first step after a rollout of one batch has the rollout's own weights.
        self._reusable = self.settings.batches_per_rollout == 1 and self.settings.dropout == 0

    def go_on(self) -> None:
        """Finish the update in which a run was stopped."""
        if self._learned:
            self.update(self._learned)

    def collect(self, batch: ClipBatch, judge: FrozenJudge) -> None:
        """Store a batch's rollout; where it was the last of an update, learn from all."""
        self.rollouts.append(roll_out(self.actor, self.critic, judge, batch, self._reusable))
        if len(self.rollouts) == self.settings.batches_per_rollout:
            self.update()
        self.session.checkpoint(partial(pack_rollouts, self.rollouts, 0), len(self.rollouts))

    def update(self, learned: int = 0) -> None:
        """Pass over what is stored, of which some steps may have been made already."""
        passes = self.rollouts * self.settings.passes
        for number in range(learned, len(passes)):
            reuse = self._reusable and number == 0
            names = self.clips.names(passes[number].batch)
            self.session.seen.append(learn(self.actor, self.critic, passes[number], self.loss, reuse, names))
            if number + 1 < len(passes):
                packed = partial(pack_rollouts, self.rollouts, number + 1)
                self.session.checkpoint(packed, len(self.rollouts) + number + 1)
        self.actor.schedule.step()
        self.critic.schedule.step()
        self.rollouts.clear()
        self.session.advance({"reward": self.session.seen[-1]["reward"]})
        if self.session.evaluates(self.settings.evaluate_every):
            self.evaluate()

    def evaluate(self) -> None:
        """Record how well the actor now orders the validation clips."""
        with self.actor.whole() as ranker:
            quality = validation_ndcg(ranker, self.validation, self.actor.processes, self.settings.clips_per_batch)
        self.session.record(quality, self.actor.save)


def roll_out(
    actor: Learner[RelevanceRanker],
    critic: Learner[PartialOrderModel],
    judge: FrozenJudge,
    batch: ClipBatch,
    reusable: bool = False,
) -> Rollout:
    """Propose each pair's order by descending score; reward it and value the pair as given.

    A `reusable` rollout keeps what gradients need, so that a step with the same weights need not compute it again.
    """
    actor.model.eval()
    critic.model.eval()
    with torch.set_grad_enabled(reusable), actor.autocast():
        scores, value = look_at(actor.parallel, critic.parallel, batch)
    proposed = scores.argsort(dim=-1, descending=True, stable=True)
    proposed_pairs = batch.pairs.gather(-1, proposed)
    with actor.autocast():
        reward = judge(batch, torch.cat([batch.pairs, proposed_pairs], dim=-1))
    return Rollout(batch, scores, proposed, reward, value)


def learn(
    actor: Learner[RelevanceRanker],
    critic: Learner[PartialOrderModel],
    rollout: Rollout,
    loss: PPOLoss,
    reuse: bool = False,
    clips: Sequence[str] = (),
) -> dict[str, float]:
    """One step of actor and critic on a rollout of `clips`, whose own scores and values are reused if so asked."""
    scores, value = rollout.scores, rollout.value
    if not reuse:
        actor.model.train()
        critic.model.train()
        with actor.autocast():
            scores, value = look_at(actor.parallel, critic.parallel, rollout.batch)
    losses = rollout_losses(scores, value, rollout, loss, actor.processes.total)
    actor.step(losses.policy_loss, clips)
    critic.step(losses.value_loss, clips)
    return summarise(losses, rollout, value)


def look_at(actor: nn.Module, critic: nn.Module, batch: ClipBatch) -> tuple[Tensor, Tensor]:
    """Scores `[B, P, 2]` of the labels of each pair as given and the pair's value `[B, P]`; each label encoded once."""
    masks = {"text_mask": batch.text_mask, "frame_mask": batch.frame_mask}
    scores = actor(batch.text, batch.frames, **masks)
    value = critic(batch.text, batch.frames, batch.pairs, **masks)
    return scores.gather(1, batch.pairs.flatten(1)).view(batch.pairs.shape), value


def rollout_losses(
    scores: Tensor, value: Tensor, rollout: Rollout, loss: PPOLoss, total: Total = this_process
) -> PPOLosses:
    """The losses of a rollout under the current scores and values."""
    return ppo_losses(
        scores=scores.flatten(0, 1),
        old_scores=rollout.scores.detach().flatten(0, 1),
        proposed=rollout.proposed.flatten(0, 1),
        reward=rollout.reward.flatten(),
        value=value.flatten(),
        old_value=rollout.value.detach().flatten(),
        total=total,
        **loss.model_dump(),
    )


def summarise(losses: PPOLosses, rollout: Rollout, value: Tensor) -> dict[str, float]:
    """What is logged of a rollout's losses, as means over its pairs."""
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
