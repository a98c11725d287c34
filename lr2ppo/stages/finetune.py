"""Direct fine-tuning: train the ranker of stage 1 on the annotated pairs themselves, without a reward model.

With `train.graded`, it is trained on graded clips, such as those of stage 1, at the same time.
"""

from functools import partial

import torch
from torch import Tensor

from lr2ppo.config.schema import FinetuneConfig
from lr2ppo.data.dataset import ClipBatch
from lr2ppo.data.samplers import Draw, annotated_pairs, graded_lists, taking_turns
from lr2ppo.distributed.processes import Processes
from lr2ppo.losses import PREFERENCE_LOSSES, RELATIVE_LOSSES, smooth_l1_loss
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.weights import load_kind
from lr2ppo.ops.linear import use_fast_linear
from lr2ppo.ops.memory import keep_freed_memory
from lr2ppo.training.learner import Learner, count_steps
from lr2ppo.training.replay import Replayed
from lr2ppo.training.run import TrainingRun


def train(config: FinetuneConfig, processes: Processes, fresh: bool) -> None:
    """Fine-tune a ranker on annotated pairs of the target domain: what stage 3 has to be better than."""
    run = TrainingRun.open(config, processes, fresh)
    config = run.config
    ranker = load_kind(run.sources["ranker"] / "best", RelevanceRanker).train()
    batches = run.read(draw_clips(run), ranker)
    steps = count_steps(batches, config.compute)
    losses = {**PREFERENCE_LOSSES, **RELATIVE_LOSSES}
    preference_loss = partial(losses[config.loss.name], **config.loss.parameters, total=processes.all_reduce)
    start = open_start(run) if config.loss.name in RELATIVE_LOSSES else None
    keep_freed_memory(processes.device)
    learner = Learner(ranker, config.train, steps, config.compute, processes, config.safety.on_nonfinite)

    pairs = f"{sum(len(clip.pairs) for clip in run.clips.clips)} annotated pairs of {len(run.clips)} target clips"
    lists = "" if run.graded is None else f" and {len(run.graded)} graded clips"
    headline = f"direct fine-tuning: {pairs}{lists}, {steps} steps; ranker from {run.sources['ranker']}"

    def learn(batch: ClipBatch) -> dict[str, Tensor]:
        with learner.autocast():
            scores = learner.parallel(**batch.inputs())
            better, worse = pair_scores(scores, batch)
            before = (0.0, 0.0) if start is None else pair_scores(start(**batch.inputs()), batch)
            loss = preference_loss(better - before[0], worse - before[1], counted=batch.counted)
            if run.graded is not None:
                listed = smooth_l1_loss(*batch.lists(scores), total=processes.all_reduce)
                loss = loss + config.train.graded_weight * listed
        learner.backward(loss)
        return {"loss": loss.detach(), "accuracy": measure_accuracy(better > worse, batch.counted, processes)}

    replayed = Replayed(learn, learner)
    with run.training({"": learner}, steps, headline):
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


def open_start(run: TrainingRun[FinetuneConfig]) -> RelevanceRanker:
    """Open the ranker that the run starts from, frozen."""
    start = load_kind(run.sources["ranker"] / "best", RelevanceRanker, dropout=0.0)
    return use_fast_linear(start).to(run.processes.device).requires_grad_(False)


def draw_clips(run: TrainingRun[FinetuneConfig]) -> Draw:
    """Draw the annotated pairs, and beside them the whole lists of the graded clips if there are some."""
    pairs = annotated_pairs(run.clips.clips, run.config.train.pairs_per_clip)
    if run.graded is None:
        return pairs
    longest = max(len(clip.labels) for clip in run.graded.clips)
    return taking_turns(pairs, graded_lists(run.graded.clips, longest, fill=False), len(run.clips))


def measure_accuracy(correct: Tensor, counted: Tensor | None, processes: Processes) -> Tensor:
    """The share of a batch's pairs, over all processes, that are in the annotated order; NaN if it has none.

    Shapes, [pairs] bool each: correct; counted, which pairs there are, None if all.
    """
    counted = torch.ones_like(correct) if counted is None else counted
    own = torch.stack([correct & counted, counted]).sum(1)
    correct, count = processes.all_reduce(own).double().unbind()
    return correct / count


def pair_scores(scores: Tensor, batch: ClipBatch) -> tuple[Tensor, Tensor]:
    """Return the scores of the better and of the worse label of each annotated pair: [B, L] -> [pairs] each."""
    first, second = batch.pair_scores(scores).unbind(-1)
    better, worse = first.where(batch.first_is_better, second), second.where(batch.first_is_better, first)
    return batch.of_pairs(better), batch.of_pairs(worse)
