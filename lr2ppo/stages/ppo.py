"""Stage 3: the frozen reward model's judgement improves the ranker (the actor), with a critic as baseline."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lr2ppo.config import PPOConfig, PPOLoss
from lr2ppo.data.annotations import Need
from lr2ppo.data.dataset import ClipBatch, open_store
from lr2ppo.data.samplers import EpochSampler, random_pairs, training_loader
from lr2ppo.engine.command import run_stage
from lr2ppo.engine.inputs import check_fit, open_inputs, overlap_note
from lr2ppo.engine.optimizer import build_optimizer, learning_rate
from lr2ppo.engine.processes import Processes
from lr2ppo.engine.runs import Run, check_name, find_earlier
from lr2ppo.engine.scoring import validation_ndcg
from lr2ppo.errors import UserError
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.objectives import PPOLosses, ppo_losses


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


def train(config: PPOConfig, processes: Processes, fresh: bool) -> None:
    check_name(config, processes, fresh)
    ranker_run = find_earlier(config.ranker, "pointwise", config.preset, config.logs)
    reward_run = find_earlier(config.reward, "reward", config.preset, config.logs)
    config = config.model_copy(update={"ranker": str(ranker_run), "reward": str(reward_run)})
    settings = config.train
    actor = load_kind(ranker_run / "best", RelevanceRanker, settings.dropout)
    critic = load_kind(reward_run / "best", PartialOrderModel, settings.dropout)
    reward_model = load_kind(reward_run / "best", PartialOrderModel).to(processes.device).eval().requires_grad_(False)

    store = open_store(config.data)
    for model, source in ((actor, ranker_run), (reward_model, reward_run)):
        check_fit(model.encoder.config, store, config.data.frames, str(source))
    files: dict[str, Need] = {config.data.train: "labels", config.data.validation: "grades"}
    clips, validation = open_inputs(config.data, files, store, actor.encoder.config, processes)
    sampler = EpochSampler(
        random_pairs(clips.clips, settings.pairs_per_clip, settings.visits_per_epoch),
        batch_size=settings.clips_per_batch,
        seed=config.seed,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    loader = training_loader(clips, sampler, config.data.workers)
    batches = settings.epochs * len(sampler)
    updates = batches // settings.batches_per_rollout
    if updates == 0:
        raise UserError(
            f"train.batches_per_rollout: found {settings.batches_per_rollout}, but the run has "
            f"{batches} batches in all; wanted fewer, or more train.epochs"
        )
    run = Run(config, processes)

    parallel_actor, parallel_critic = processes.parallel(actor), processes.parallel(critic)
    actor_steps, critic_steps = (part.schedule_updates or updates for part in (settings.actor, settings.critic))
    actor_optimizer, actor_schedule = build_optimizer(actor, settings.actor, actor_steps)
    critic_optimizer, critic_schedule = build_optimizer(critic, settings.critic, critic_steps)
    run.say(
        f"stage 3: {len(clips)} target clips, {updates} updates; actor {ranker_run}, reward model {reward_run}"
        + overlap_note(clips, validation)
    )
    quality = validation_ndcg(actor, validation, processes, settings.clips_per_batch)
    run.record(0, updates, {}, quality, "ndcg", actor)

    update = 0
    seen: list[dict[str, float]] = []
    rollouts: list[Rollout] = []
    with run.progress(updates) as progress:
        for epoch in range(settings.epochs):
            sampler.set_epoch(epoch)
            for batch in loader:
                rollouts.append(roll_out(actor, reward_model, critic, batch.to(processes.device)))
                if len(rollouts) < settings.batches_per_rollout:
                    continue
                optimizers = (actor_optimizer, critic_optimizer)
                seen += learn(parallel_actor, parallel_critic, optimizers, rollouts, config.loss, settings.passes)
                actor_schedule.step()
                critic_schedule.step()
                rollouts.clear()
                update += 1
                progress.update()
                progress.set_postfix(reward=f"{seen[-1]['reward']:.3f}", best=run.best_text)
                if update % settings.evaluate_every == 0 or update == updates:
                    averages = processes.mean({name: sum(s[name] for s in seen) / len(seen) for name in seen[0]})
                    averages["actor_learning_rate"] = learning_rate(actor_schedule)
                    averages["critic_learning_rate"] = learning_rate(critic_schedule)
                    quality = validation_ndcg(actor, validation, processes, settings.clips_per_batch)
                    run.record(update, updates, averages, quality, "ndcg", actor)
                    seen.clear()
    run.finish(update, {"": actor, "critic": critic})


@torch.no_grad()
def roll_out(
    actor: RelevanceRanker, reward_model: PartialOrderModel, critic: PartialOrderModel, batch: ClipBatch
) -> Rollout:
    """Propose each pair's order by descending score; reward it and value the pair as given."""
    actor.eval()
    critic.eval()
    masks = {"text_mask": batch.text_mask, "frame_mask": batch.frame_mask}
    scores = pair_scores(actor, batch)
    proposed = scores.argsort(dim=-1, descending=True, stable=True)
    proposed_pairs = batch.pairs.gather(-1, proposed)
    reward = reward_model(batch.text, batch.frames, torch.cat([batch.pairs, proposed_pairs], dim=-1), **masks)
    value = critic(batch.text, batch.frames, batch.pairs, **masks)
    return Rollout(batch, scores, proposed, reward, value)


def learn(
    actor: nn.Module,
    critic: nn.Module,
    optimizers: tuple[Optimizer, Optimizer],
    rollouts: Sequence[Rollout],
    loss: PPOLoss,
    passes: int,
) -> list[dict[str, float]]:
    """One update: a step of actor and critic on each rollout, `passes` times over; returns what each step saw."""
    actor.train()
    critic.train()
    seen: list[dict[str, float]] = []
    for rollout in list(rollouts) * passes:
        losses, value = rollout_losses(actor, critic, rollout, loss)
        for optimizer, objective in zip(optimizers, (losses.policy_loss, losses.value_loss), strict=True):
            optimizer.zero_grad(set_to_none=True)
            objective.backward()
            optimizer.step()
        seen.append(summarise(losses, rollout, value))
    return seen


def rollout_losses(actor: nn.Module, critic: nn.Module, rollout: Rollout, loss: PPOLoss) -> tuple[PPOLosses, Tensor]:
    """The losses of a rollout under the current weights, and the critic's current values."""
    batch = rollout.batch
    value = critic(batch.text, batch.frames, batch.pairs, text_mask=batch.text_mask, frame_mask=batch.frame_mask)
    losses = ppo_losses(
        scores=pair_scores(actor, batch).flatten(0, 1),
        old_scores=rollout.scores.flatten(0, 1),
        proposed=rollout.proposed.flatten(0, 1),
        reward=rollout.reward.flatten(),
        value=value.flatten(),
        old_value=rollout.value.flatten(),
        **loss.model_dump(),
    )
    return losses, value


def pair_scores(actor: nn.Module, batch: ClipBatch) -> Tensor:
    """Scores of the labels of each pair as given: [B, P, 2]; a label in several pairs is encoded once."""
    scores = actor(batch.text, batch.frames, text_mask=batch.text_mask, frame_mask=batch.frame_mask)
    gathered: Tensor = scores.gather(1, batch.pairs.flatten(1)).view(batch.pairs.shape)
    return gathered


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


if __name__ == "__main__":
    run_stage("ppo", train)
