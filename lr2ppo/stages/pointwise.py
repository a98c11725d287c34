"""Stage 1: a pointwise ranker learns relevance grades of the source domain."""

from torch import Tensor, nn

from lr2ppo.config.schema import PointwiseConfig
from lr2ppo.data.annotations import Need
from lr2ppo.data.dataset import ClipBatch, open_store
from lr2ppo.data.samplers import graded_lists
from lr2ppo.distributed.processes import Processes
from lr2ppo.evaluation.scoring import validation_ndcg
from lr2ppo.losses.ranking import smooth_l1_loss
from lr2ppo.models import RelevanceRanker
from lr2ppo.ops.memory import keep_freed_memory
from lr2ppo.training.inputs import complete_model_config, left_out_note, open_inputs, overlap_note
from lr2ppo.training.learner import Learner, count_steps
from lr2ppo.training.run_folder import Run, claim_run
from lr2ppo.training.trainer import Session, open_batches


def train(config: PointwiseConfig, processes: Processes, fresh: bool) -> None:
    start = claim_run(config, processes, fresh)
    store = open_store(config.data)
    config = config.model_copy(update={"model": complete_model_config(config.model, store, config.data.frames)})
    files: list[tuple[str, Need]] = [(config.data.train, "grades"), (config.data.validation, "grades")]
    clips, validation = open_inputs(config.data, files, store, config.model, processes)
    settings = config.train
    draw = graded_lists(clips.clips, settings.max_labels)
    sampler, loader = open_batches(start, clips, draw, processes)
    steps = count_steps(settings.epochs * len(sampler), config.compute)
    run = Run(config, processes, start, store)
    keep_freed_memory(processes.device)
    learner = Learner(
        RelevanceRanker(config.model), settings, steps, config.compute, processes, config.safety.on_nonfinite
    )
    run.say(
        f"stage 1: {len(clips)} source clips, {steps} steps; validation on {len(validation)} clips"
        + overlap_note(clips, validation)
        + left_out_note(clips, validation)
    )

    with Session(run, start, sampler, loader, {"": learner}, steps, processes) as session:
        for batch in session.batches():
            with learner.autocast():
                loss = list_loss(learner.parallel, batch.to(processes.device), config.loss.beta)
            session.seen.append({"loss": loss.item()})
            if not learner.step(loss, clips.names(batch)):
                continue
            learner.schedule.step()
            session.advance({"loss": loss.item()})
            if session.evaluates(settings.evaluate_every):
                with learner.whole() as ranker:
                    quality = validation_ndcg(ranker, validation, processes, settings.clips_per_batch)
                session.record(quality, learner.save)
            session.checkpoint()
    session.finish({"": learner.save})


def list_loss(ranker: nn.Module, batch: ClipBatch, beta: float) -> Tensor:
    """Smooth-L1 over each clip's fixed-length list; a label that fills it several times is encoded once."""
    scores = ranker(batch.text, batch.frames, text_mask=batch.text_mask, frame_mask=batch.frame_mask)
    return smooth_l1_loss(scores.gather(1, batch.filled), batch.grades.gather(1, batch.filled), beta=beta)
