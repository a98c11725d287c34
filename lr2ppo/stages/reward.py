"""Stage 2: a reward model learns from annotated pairs of the target domain which label order people prefer."""

import torch

from lr2ppo.config.schema import ModelConfig, RewardConfig
from lr2ppo.data.annotations import Need
from lr2ppo.data.dataset import open_store
from lr2ppo.data.samplers import annotated_pairs, graded_pairs
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.evaluation.scoring import judged_pairs, preference_rewards
from lr2ppo.losses.preference import preference_hinge_loss
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.ops.memory import keep_freed_memory
from lr2ppo.runs.lookup import find_earlier
from lr2ppo.training.inputs import complete_model_config, left_out_note, open_inputs, overlap_note
from lr2ppo.training.learner import Learner, count_steps
from lr2ppo.training.run_folder import Run, claim_run
from lr2ppo.training.trainer import Session, open_batches


def train(config: RewardConfig, processes: Processes, fresh: bool) -> None:
    start = claim_run(config, processes, fresh)
    config = start.config
    ranker = None if config.ranker == "none" else find_earlier(config.ranker, "pointwise", config.preset, config.logs)
    store = open_store(config.data)
    config = config.model_copy(update={"model": complete_model_config(config.model, store, config.data.frames)})
    files: list[tuple[str, Need]] = [(config.data.train, "pairs"), (config.data.validation, "grades")]
    clips, validation = open_inputs(config.data, files, store, config.model, processes)
    validation_pairs = graded_pairs(validation.clips, config.train.validation_pairs, config.seed)
    if not validation_pairs:
        raise UserError(
            f"{config.data.root / config.data.validation}: found no clip with labels of different grades, "
            "wanted some whose order the reward model can be chosen by"
        )
    reward_model = PartialOrderModel(config.model)
    if ranker is not None:
        config = config.model_copy(update={"ranker": str(ranker)})
        start_from_ranker(reward_model, load_kind(ranker / "best", RelevanceRanker), str(ranker))

    settings = config.train
    draw = annotated_pairs(clips.clips, settings.pairs_per_clip)
    sampler, loader = open_batches(start, clips, draw, processes)
    steps = count_steps(settings.epochs * len(sampler), config.compute)
    run = Run(config, processes, start, store)
    keep_freed_memory(processes.device)
    learner = Learner(reward_model, settings, steps, config.compute, processes, config.safety.on_nonfinite)
    pairs = sum(len(clip.pairs) for clip in clips.clips)
    run.say(
        f"stage 2: {pairs} annotated pairs of {len(clips)} target clips, {steps} steps; "
        f"trunk from {ranker or 'scratch'}" + overlap_note(clips, validation) + left_out_note(clips, validation)
    )

    with Session(run, start, sampler, loader, {"": learner}, steps, processes) as session:
        for batch in session.batches():
            with learner.autocast():
                chosen, rejected = preference_rewards(learner.parallel, batch.to(processes.device))
                loss = preference_hinge_loss(chosen, rejected, config.loss.margin, processes.total)
            session.seen.append({"loss": loss.item(), "accuracy": (chosen > rejected).float().mean().item()})
            if not learner.step(loss, clips.names(batch)):
                continue
            learner.schedule.step()
            session.advance({"loss": loss.item()})
            if session.evaluates(settings.evaluate_every):
                with learner.whole() as model:
                    quality = judged_pairs(model, validation, validation_pairs, processes, settings.clips_per_batch)
                session.record(quality, learner.save)
            session.checkpoint()
    session.finish({"": learner.save})


def start_from_ranker(reward_model: PartialOrderModel, ranker: RelevanceRanker, source: str) -> None:
    """Take over the ranker's trunk; raises `UserError` where its shape is another."""
    wanted, found = reward_model.encoder.config, ranker.encoder.config
    differing = [
        key for key in ModelConfig.model_fields if key != "dropout" and getattr(wanted, key) != getattr(found, key)
    ]
    if differing:
        keys = ", ".join(f"model.{key} {getattr(found, key)!r} (here {getattr(wanted, key)!r})" for key in differing)
        raise UserError(f"ranker: {source} has another shape: {keys}; make them equal, or give ranker=none")
    with torch.no_grad():
        reward_model.encoder.load_state_dict(ranker.encoder.state_dict())
