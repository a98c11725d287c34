"""Stage 1: a pointwise ranker learns relevance grades of the source domain."""

from torch import Tensor, nn

from lr2ppo.config import PointwiseConfig
from lr2ppo.data.annotations import Need
from lr2ppo.data.dataset import ClipBatch, open_store
from lr2ppo.data.samplers import EpochSampler, graded_lists, training_loader
from lr2ppo.engine.command import run_stage
from lr2ppo.engine.inputs import complete_model_config, open_inputs, overlap_note
from lr2ppo.engine.learner import Learner, count_steps
from lr2ppo.engine.processes import Processes
from lr2ppo.engine.runs import Run, check_name
from lr2ppo.engine.scoring import validation_ndcg
from lr2ppo.models import RelevanceRanker
from lr2ppo.objectives import smooth_l1_loss


def train(config: PointwiseConfig, processes: Processes, fresh: bool) -> None:
    check_name(config, processes, fresh)
    store = open_store(config.data)
    config = config.model_copy(update={"model": complete_model_config(config.model, store, config.data.frames)})
    files: list[tuple[str, Need]] = [(config.data.train, "grades"), (config.data.validation, "grades")]
    clips, validation = open_inputs(config.data, files, store, config.model, processes)
    settings = config.train
    sampler = EpochSampler(
        graded_lists(clips.clips, settings.max_labels),
        batch_size=settings.clips_per_batch,
        seed=config.seed,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    loader = training_loader(clips, sampler, config.data.workers)
    steps = count_steps(settings.epochs * len(sampler), config.compute)
    run = Run(config, processes)
    learner = Learner(RelevanceRanker(config.model), settings, steps, config.compute, processes)
    run.say(
        f"stage 1: {len(clips)} source clips, {steps} steps; validation on {len(validation)} clips"
        + overlap_note(clips, validation)
    )

    step = 0
    recent: list[float] = []
    with run.progress(steps) as progress:
        for epoch in range(settings.epochs):
            sampler.set_epoch(epoch)
            for batch in loader:
                with learner.autocast():
                    loss = list_loss(learner.parallel, batch.to(processes.device), config.loss.beta)
                recent.append(loss.item())
                if not learner.step(loss):
                    continue
                learner.schedule.step()
                step += 1
                progress.update()
                progress.set_postfix(loss=f"{recent[-1]:.4f}", best=run.best_text)
                if step % settings.evaluate_every == 0 or step == steps:
                    averages = processes.mean({"loss": sum(recent) / len(recent)})
                    averages["learning_rate"] = learner.learning_rate
                    with learner.whole() as ranker:
                        quality = validation_ndcg(ranker, validation, processes, settings.clips_per_batch)
                    run.record(step, steps, averages, quality, "ndcg", learner.save)
                    recent.clear()
    run.finish(step, {"": learner.save})


def list_loss(ranker: nn.Module, batch: ClipBatch, beta: float) -> Tensor:
    """Smooth-L1 over each clip's fixed-length list; a label that fills it several times is encoded once."""
    scores = ranker(batch.text, batch.frames, text_mask=batch.text_mask, frame_mask=batch.frame_mask)
    return smooth_l1_loss(scores.gather(1, batch.filled), batch.grades.gather(1, batch.filled), beta=beta)


if __name__ == "__main__":
    run_stage("pointwise", train)
