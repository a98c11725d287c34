"""Direct fine-tuning: train the ranker of stage 1 on the annotated pairs themselves, without a reward model."""

from functools import partial

from torch import Tensor, nn

from lr2ppo.config.schema import FinetuneConfig
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.data.samplers import annotated_pairs
from lr2ppo.distributed.processes import Processes
from lr2ppo.losses import PREFERENCE_LOSSES, RELATIVE_LOSSES
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.ops.linear import use_fast_linear
from lr2ppo.ops.memory import keep_freed_memory
from lr2ppo.training.learner import Learner, count_steps
from lr2ppo.training.run import TrainingRun


def train(config: FinetuneConfig, processes: Processes, fresh: bool) -> None:
    """Fine-tune a ranker on annotated pairs of the target domain: what stage 3 has to be better than."""
    run = TrainingRun.open(config, processes, fresh)
    config = run.config
    ranker = load_kind(run.sources["ranker"] / "best", RelevanceRanker).train()
    batches = run.read(annotated_pairs(run.clips.clips, config.train.pairs_per_clip), ranker)
    steps = count_steps(batches, config.compute)
    losses = {**PREFERENCE_LOSSES, **RELATIVE_LOSSES}
    preference_loss = partial(losses[config.loss.name], **config.loss.parameters, total=processes.all_reduce)
    start = open_start(run) if config.loss.name in RELATIVE_LOSSES else None
    keep_freed_memory(processes.device)
    learner = Learner(ranker, config.train, steps, config.compute, processes, config.safety.on_nonfinite)

    pairs = f"{sum(len(clip.pairs) for clip in run.clips.clips)} annotated pairs of {len(run.clips)} target clips"
    headline = f"direct fine-tuning: {pairs}, {steps} steps; ranker from {run.sources['ranker']}"
    with run.training({"": learner}, steps, headline):
        if run.is_new:
            run.record_ndcg()
        for batch in run.batches():
            with learner.autocast():
                better, worse = pair_scores(learner.parallel, batch)
                before = (0.0, 0.0) if start is None else pair_scores(start, batch)
                loss = preference_loss(better - before[0], worse - before[1])
            run.observe({"loss": loss.item(), "accuracy": (better > worse).float().mean().item()})
            if learner.step(loss, batch.ids):
                learner.schedule.step()
                run.advance({"loss": loss.item()})
                if run.evaluates:
                    run.record_ndcg()
                run.save_checkpoint()


def open_start(run: TrainingRun[FinetuneConfig]) -> RelevanceRanker:
    """Open the ranker that the run starts from, frozen."""
    start = load_kind(run.sources["ranker"] / "best", RelevanceRanker, dropout=0.0)
    return use_fast_linear(start).to(run.processes.device).requires_grad_(False)


def pair_scores(ranker: nn.Module, batch: ClipBatch) -> tuple[Tensor, Tensor]:
    """Return a ranker's scores of the better and of the worse label of a batch's annotated pairs: [pairs] each."""
    first, second = batch.pair_scores(ranker(**batch.inputs())).unbind(-1)
    better, worse = first.where(batch.first_is_better, second), second.where(batch.first_is_better, first)
    return better[batch.pair_mask], worse[batch.pair_mask]
