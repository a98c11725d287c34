"""Distillation: fit a ranker to the reward model's preferences between the labels of unannotated clips."""

from torch import Tensor

from lr2ppo.config.schema import DistillConfig
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.data.samplers import random_pairs
from lr2ppo.distributed.processes import Processes
from lr2ppo.losses import distillation_loss
from lr2ppo.losses.reduction import masked_mean
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.policies.frozen_reward import open_frozen_reward
from lr2ppo.training.learner import Learner, count_steps
from lr2ppo.training.replay import Replayed
from lr2ppo.training.run import TrainingRun


def train(config: DistillConfig, processes: Processes, fresh: bool) -> None:
    """Fit a ranker to a frozen reward model on random pairs, as stage 3 sees them, but without a policy or a critic."""
    run = TrainingRun.open(config, processes, fresh)
    config = run.config
    ranker = load_kind(run.sources["ranker"] / "best", RelevanceRanker).train()
    reward_model = load_kind(run.sources["reward"] / "best", PartialOrderModel)
    settings = config.train
    draw = random_pairs(run.clips.clips, settings.pairs_per_clip, settings.visits_per_epoch)
    steps = count_steps(run.read(draw, ranker, reward_model), config.compute)
    frozen_reward = open_frozen_reward(
        reward_model,
        run.clips,
        run.fingerprints["features"],
        processes,
        config.compute.precision,
        config.logs / "cache",
    )
    learner = Learner(ranker, settings, steps, config.compute, processes, config.safety.on_nonfinite)

    sources = f"ranker from {run.sources['ranker']}, reward model {run.sources['reward']}"

    def learn(batch: ClipBatch) -> dict[str, Tensor]:
        with learner.autocast():
            first, second = batch.pair_scores(learner.parallel(**batch.inputs())).unbind(-1)
            margin = frozen_reward.margin(batch, batch.pairs)
            loss = distillation_loss(
                batch.of_pairs(first - second),
                batch.of_pairs(margin),
                total=processes.all_reduce,
                counted=batch.counted,
                **config.loss.model_dump(),
            )
        learner.backward(loss)
        agrees = (first > second) == (margin > 0)
        return {"loss": loss.detach(), "agreement": masked_mean(agrees.float(), batch.pair_mask, processes.all_reduce)}

    replayed = Replayed(learn, learner)
    with run.training({"": learner}, steps, f"distillation: {len(run.clips)} target clips, {steps} steps; {sources}"):
        if run.is_new:
            run.record_ndcg(config.train.standard_errors)
        for batch in run.batches():
            run.observe(replayed(batch))
            if learner.count(batch.ids):
                learner.schedule.step()
                run.advance("loss")
                if run.evaluates:
                    run.record_ndcg(config.train.standard_errors)
                run.save_checkpoint()
