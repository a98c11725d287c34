"""Stage 2: train a reward model on annotated pairs of the target domain to predict the preferred label order."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from lr2ppo.config.schema import ModelConfig, RewardConfig
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.data.samplers import annotated_pairs, graded_pairs
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.evaluation.scoring import preference_rewards
from lr2ppo.losses import PREFERENCE_LOSSES
from lr2ppo.losses.reduction import mean
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import load_kind, new_model
from lr2ppo.ops.memory import keep_freed_memory
from lr2ppo.training.learner import Learner, count_steps
from lr2ppo.training.replay import Replayed
from lr2ppo.training.run import TrainingRun


def train(config: RewardConfig, processes: Processes, fresh: bool) -> None:
    """Train a reward model on annotated pairs (paper section 3.3)."""
    run = TrainingRun.open(config, processes, fresh)
    config = run.config
    validation_pairs = graded_pairs(run.validation.clips, config.train.validation_pairs, config.seed)
    reward_model = new_model(PartialOrderModel, config.model)
    if "ranker" in run.sources:
        start_from_ranker(reward_model, run.sources["ranker"])
    batches = run.read(annotated_pairs(run.clips.clips, config.train.pairs_per_clip), reward_model)
    steps = count_steps(batches, config.compute)
    preference_loss = partial(PREFERENCE_LOSSES[config.loss.name], **config.loss.parameters, total=processes.all_reduce)
    keep_freed_memory(processes.device)
    learner = Learner(reward_model, config.train, steps, config.compute, processes, config.safety.on_nonfinite)

    pairs = f"{sum(len(clip.pairs) for clip in run.clips.clips)} annotated pairs of {len(run.clips)} target clips"
    headline = f"stage 2: {pairs}, {steps} steps; trunk from {run.sources.get('ranker', 'scratch')}"
    learn = Replayed(partial(learn_pairs, learner, preference_loss), learner)
    with run.training({"": learner}, steps, headline):
        for batch in run.batches():
            run.observe(learn(batch))
            if learner.count(batch.ids):
                learner.schedule.step()
                run.advance("loss")
                if run.evaluates:
                    run.record_pairs(validation_pairs)
                run.save_checkpoint()


def learn_pairs(
    learner: Learner[PartialOrderModel], preference_loss: Callable[..., Tensor], batch: ClipBatch
) -> dict[str, Tensor]:
    """Learn from a batch's annotated pairs."""
    with learner.autocast():
        chosen, rejected = preference_rewards(learner.parallel, batch)
        loss = preference_loss(chosen, rejected, counted=batch.counted)
    learner.backward(loss)
    accuracy = mean((chosen > rejected).float(), learner.processes.all_reduce, batch.counted)
    return {"loss": loss.detach(), "accuracy": accuracy}


def start_from_ranker(reward_model: PartialOrderModel, run: Path) -> None:
    """Initialize the trunk from a ranker's run; raise `UserError` if its shape differs.

    A residual reward model starts as the ranker knows it: its rewards differ by the ranker's score differences.
    """
    ranker = load_kind(run / "best", RelevanceRanker)
    wanted, found = reward_model.encoder.config, ranker.encoder.config
    of_trunk = ModelConfig.model_fields.keys() - {"dropout", "context", "residual"}
    differing = [
        key for key in ModelConfig.model_fields if key in of_trunk and getattr(wanted, key) != getattr(found, key)
    ]
    if differing:
        keys = ", ".join(f"model.{key} {getattr(found, key)!r} (here {getattr(wanted, key)!r})" for key in differing)
        raise UserError(f"ranker: {run} has another shape: {keys}; make them equal, or give ranker=none")
    if wanted.residual and ranker.context is not None:
        raise UserError(
            f"ranker: {run} has model.context {found.context}, whose scores depend on the clip's other labels; a "
            "residual reward model adds to a label's own score: start from another ranker, or set model.residual=false"
        )
    with torch.no_grad():
        reward_model.encoder.load_state_dict(ranker.encoder.state_dict())
        if reward_model.label_score is not None:
            reward_model.label_score.load_state_dict(ranker.score.state_dict())
            for weight in reward_model.score.parameters():
                weight.zero_()
