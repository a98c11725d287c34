"""Stage 1: train a pointwise ranker on relevance grades of the source domain."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from lr2ppo.config.schema import PointwiseConfig
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.data.samplers import graded_lists
from lr2ppo.distributed.processes import Processes
from lr2ppo.losses import RANKING_LOSSES
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.weights import new_model
from lr2ppo.ops.memory import keep_freed_memory
from lr2ppo.training.learner import Learner, count_steps
from lr2ppo.training.replay import Replayed
from lr2ppo.training.run import TrainingRun


def train(config: PointwiseConfig, processes: Processes, fresh: bool) -> None:
    """Train a ranker on graded lists (paper section 3.2)."""
    run = TrainingRun.open(config, processes, fresh)
    config = run.config
    ranker = new_model(RelevanceRanker, config.model)
    batches = run.read(graded_lists(run.clips.clips, config.train.max_labels, config.train.fill_lists), ranker)
    steps = count_steps(batches, config.compute)
    ranking_loss = partial(RANKING_LOSSES[config.loss.name], **config.loss.parameters, total=processes.all_reduce)
    keep_freed_memory(processes.device)
    learner = Learner(ranker, config.train, steps, config.compute, processes, config.safety.on_nonfinite)

    headline = f"stage 1: {len(run.clips)} source clips, {steps} steps; validation on {len(run.validation)} clips"
    learn = Replayed(partial(learn_lists, learner, ranking_loss), learner)
    with run.training({"": learner}, steps, headline):
        for batch in run.batches():
            run.observe(learn(batch))
            if learner.count(batch.ids):
                learner.schedule.step()
                run.advance("loss")
                if run.evaluates:
                    run.record_ndcg(config.train.standard_errors)
                run.save_checkpoint()


def learn_lists(
    learner: Learner[RelevanceRanker], ranking_loss: Callable[..., Tensor], batch: ClipBatch
) -> dict[str, Tensor]:
    """Learn from a batch's lists; a label repeated in its list is scored once."""
    with learner.autocast():
        loss = ranking_loss(*batch.lists(learner.parallel(**batch.inputs())))
    learner.backward(loss)
    return {"loss": loss.detach()}
