"""Score every clip of a dataset once, over all processes, and compute the metrics of the resulting orders."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lr2ppo.data.annotations import Clip, graded
from lr2ppo.data.dataset import ClipBatch, ClipDataset, ClipRequest
from lr2ppo.data.samplers import evaluation_loader, whole_clips, with_all_labels
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import raise_faults
from lr2ppo.evaluation.metrics import CUTOFFS, fit_temperature, ndcg, pair_accuracy
from lr2ppo.models import PartialOrderModel, RelevanceRanker

Scores = NDArray[np.float64]
# Bounds the memory of comparing every pair of a long list.
PAIRS_PER_CHUNK = 4096
LARGE_BATCH = 16
# Clips of an evaluation that may be drawn.
LOGGED_CASES = 3


@dataclass(frozen=True)
class Evaluation:
    """A model's results on validation clips: mean `metrics`; for display, `histograms` by name and scored `cases`.

    `ndcg` is a ranker's NDCG over whole lists, of each clip.
    """

    metrics: dict[str, float]
    histograms: dict[str, Scores] = field(default_factory=dict)
    cases: list[tuple[Clip, Scores]] = field(default_factory=list)
    ndcg: Scores = field(default_factory=lambda: np.empty(0))


def score_clips(
    model: RelevanceRanker | PartialOrderModel,
    dataset: ClipDataset,
    processes: Processes,
    batch_size: int,
    workers: int = 0,
) -> list[Scores]:
    """Score every label, `[labels]` per clip: a ranker's score, or the win rate under a reward model."""
    return _map_clips(partial(score_batch, model), model, dataset, processes, batch_size, workers)


def clip_margins(
    model: PartialOrderModel, dataset: ClipDataset, processes: Processes, batch_size: int, workers: int = 0
) -> list[Scores]:
    """Return every clip's margins, as from `batch_margins`."""
    return _map_clips(partial(batch_margins, model), model, dataset, processes, batch_size, workers)


@torch.inference_mode()
def _map_clips(
    measure: Callable[[ClipBatch], list[Scores]],
    model: nn.Module,
    dataset: ClipDataset,
    processes: Processes,
    batch_size: int,
    workers: int,
) -> list[Scores]:
    """Apply `measure` to every clip, each on one of the processes; return all results on every process.

    Raises `UserError` on every process if a result is not finite.
    """
    requests = whole_clips(dataset.clips)
    batch_size = evaluated_at_once(batch_size, processes)
    loader = evaluation_loader(
        dataset, requests, batch_size=batch_size, rank=processes.rank, world_size=processes.world_size, workers=workers
    )
    training = model.training
    model.eval()
    local: dict[int, Scores] = {}
    for batch in loader:
        batch = batch.to(processes.device)
        local |= zip(batch.clips.tolist(), measure(batch), strict=True)
    model.train(training)
    gathered = {clip: measured for part in processes.gather(local) for clip, measured in part.items()}
    results = [gathered[clip] for clip in range(len(dataset))]
    faults = [
        f"clip {clip.id}: not all are finite"
        for clip, measured in zip(dataset.clips, results, strict=True)
        if not np.isfinite(measured).all()
    ]
    advice = "the model's numbers grow too large; use precision fp32, or train it again with a lower learning rate"
    raise_faults("scores", faults, advice)
    return results


def evaluated_at_once(clips_per_batch: int, processes: Processes) -> int:
    """The clips of a batch without gradients: on a GPU, small batches would leave most of it idle."""
    return clips_per_batch if processes.device.type == "cpu" else max(clips_per_batch, LARGE_BATCH)


def score_batch(model: RelevanceRanker | PartialOrderModel, batch: ClipBatch) -> list[Scores]:
    """Return the scores `[labels]` of each clip of a batch: see `score_clips`."""
    if isinstance(model, PartialOrderModel):
        return [win_rates(margins) for margins in batch_margins(model, batch)]
    scores, masks = _to_numpy(rank_labels(model, batch)), batch.label_mask.cpu().numpy()
    return [row[mask] for row, mask in zip(scores, masks, strict=True)]


def batch_margins(model: PartialOrderModel, batch: ClipBatch) -> list[Scores]:
    """Return each clip's `pair_margins`, `[2, pairs]`, pairs in the order of `np.triu_indices(labels, 1)`."""
    margins, (first, second) = pair_margins(model, model.encoder(**batch.inputs()))
    real = (batch.label_mask[:, first] & batch.label_mask[:, second]).cpu().numpy()
    return [row[:, mask] for row, mask in zip(_to_numpy(margins.transpose(0, 1)), real, strict=True)]


def rank_labels(model: RelevanceRanker, batch: ClipBatch) -> Tensor:
    """Return a ranker's scores of a batch: [B, L]."""
    scores: Tensor = model(**batch.inputs())
    return scores


def win_rates(margins: Scores) -> Scores:
    """Return each label's win rate: the share of its pairs, shown both ways, that it wins; ties count half.

    Shapes: margins: [2, pairs] as from `batch_margins`. Returns [labels].
    """
    labels = count_labels(margins)
    first, second = np.triu_indices(labels, 1)
    first_wins = (0.25 * (1 + np.sign(margins))).sum(0)
    wins = np.bincount(first, first_wins, labels) + np.bincount(second, 1 - first_wins, labels)
    rates: Scores = wins / max(labels - 1, 1)
    return rates


def mean_margins(margins: Scores) -> Scores:
    """Return each label's mean margin over all labels of its clip, itself included.

    Shapes: margins: [2, pairs] as from `batch_margins`. Returns [labels].
    """
    labels = count_labels(margins)
    first, second = np.triu_indices(labels, 1)
    margin = margins.mean(0)
    means: Scores = (np.bincount(first, margin, labels) - np.bincount(second, margin, labels)) / labels
    return means


def count_labels(margins: Scores) -> int:
    """Return the number of labels whose pairs these are."""
    return (1 + math.isqrt(1 + 8 * margins.shape[1])) // 2


def _to_numpy(tensor: Tensor) -> Scores:
    values: Scores = tensor.double().cpu().numpy()
    return values


def pair_margins(model: PartialOrderModel, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pair's margin: the reward of putting its first label first minus that of the reverse order.

    Shapes: vectors: [B, L, D]. Returns margins [2, B, pairs], of each pair shown in both ways, and the pairs
    [2, pairs], positions of the first and of the second label.
    """
    labels = vectors.shape[1]
    first, second = pairs = torch.triu_indices(labels, labels, offset=1, device=vectors.device)
    forward, backward = torch.stack([first, second], 1), torch.stack([second, first], 1)
    both_ways = []
    for shown in (forward, backward):
        margins = []
        for part in torch.arange(len(first), device=vectors.device).split(PAIRS_PER_CHUNK):
            orders = torch.stack([torch.cat([shown[part], proposed[part]], 1) for proposed in (forward, backward)])
            orders = orders.flatten(0, 1).expand(len(vectors), -1, -1)
            rewards = model.score_orders(vectors, orders).unflatten(1, (2, -1))
            margins.append(rewards[:, 0] - rewards[:, 1])
        both_ways.append(torch.cat(margins, 1))
    return torch.stack(both_ways), pairs


def preference_table(model: PartialOrderModel, vectors: Tensor, temperature: float) -> Tensor:
    """Return the probability that people put row before column: vectors [B, L, D] -> [B, L, L] of float64.

    It is the sigmoid of the margin, averaged over both ways to show the pair, divided by the temperature; 0.5 on the
    diagonal.
    """
    margins, (first, second) = pair_margins(model, vectors)
    first_wins = torch.sigmoid(margins.double().mean(0) / temperature)
    table = torch.full((len(vectors), vectors.shape[1], vectors.shape[1]), 0.5, dtype=torch.float64)
    table = table.to(vectors.device)
    table[:, first, second], table[:, second, first] = first_wins, 1 - first_wins
    return table


def ranking_metrics(clips: Sequence[Clip], scores: Sequence[Scores]) -> dict[str, Scores]:
    """Return each clip's NDCG at every cut-off and its pair accuracy: name -> [clips]."""
    padded, grades, mask = pad_lists(scores, [graded(clip) for clip in clips])
    metrics = {name: ndcg(padded, grades, mask, k).numpy() for name, k in CUTOFFS.items()}
    metrics["pair_accuracy"] = pair_accuracy(padded, grades, mask).numpy()
    return metrics


def validation_ndcg(model: RelevanceRanker, dataset: ClipDataset, processes: Processes, batch_size: int) -> Evaluation:
    """Evaluate a ranker on a validation set: mean NDCG at every cut-off, scores by grade, and the first cases."""
    scores = score_clips(model, dataset, processes, batch_size)
    metrics = ranking_metrics(dataset.clips, scores)
    grades, flat = np.concatenate([graded(clip) for clip in dataset.clips]), np.concatenate(scores)
    return Evaluation(
        {name: float(metrics[name].mean()) for name in CUTOFFS},
        {f"validation_scores/grade {grade}": flat[grades == grade] for grade in np.unique(grades).tolist()},
        list(zip(dataset.clips[:LOGGED_CASES], scores[:LOGGED_CASES], strict=True)),
        metrics["ndcg"],
    )


def pad_lists(scores: Sequence[Scores], grades: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad lists of different lengths to `[clips, labels]` tensors of scores and grades; return them and their mask."""
    rows = [torch.from_numpy(np.asarray(row)) for row in scores]
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    targets = pad_sequence([torch.from_numpy(np.asarray(row)) for row in grades], batch_first=True)
    return pad_sequence(rows, batch_first=True), targets, mask


@torch.inference_mode()
def evaluate_pairs(
    model: PartialOrderModel,
    dataset: ClipDataset,
    requests: Sequence[ClipRequest],
    processes: Processes,
    batch_size: int,
) -> Evaluation:
    """Evaluate a reward model on annotated pairs: the share whose better order it rewards more, and its temperature."""
    if model.reads_whole_lists:
        requests = [with_all_labels(request, dataset.clips[request.clip]) for request in requests]
    batch_size = evaluated_at_once(batch_size, processes)
    loader = evaluation_loader(
        dataset, requests, batch_size=batch_size, rank=processes.rank, world_size=processes.world_size
    )
    training = model.training
    model.eval()
    local: list[float] = []
    for batch in loader:
        batch = batch.to(processes.device)
        chosen, rejected = preference_rewards(model, batch)
        own = (chosen - rejected).double()
        local += (own if batch.counted is None else own[batch.counted]).tolist()
    model.train(training)
    margins = torch.tensor([margin for part in processes.gather(local) for margin in part], dtype=torch.float64)
    metrics = {"pair_accuracy": float((margins > 0).double().mean()), "temperature": fit_temperature(margins)}
    return Evaluation(metrics, {"validation_margins": margins.numpy()})


def preference_rewards(model: torch.nn.Module, batch: ClipBatch) -> tuple[Tensor, Tensor]:
    """Return rewards of a batch's annotated pairs with the better, and with the worse label first: [pairs] each."""
    shown, swapped = batch.pairs, batch.pairs.flip(-1)
    better_first = torch.where(batch.first_is_better.unsqueeze(-1), shown, swapped)
    chosen = torch.cat([shown, better_first], dim=-1)
    rejected = torch.cat([shown, better_first.flip(-1)], dim=-1)
    rewards = model(order=torch.cat([chosen, rejected], dim=1), **batch.inputs())
    chosen_rewards, rejected_rewards = rewards.chunk(2, dim=1)
    return batch.of_pairs(chosen_rewards), batch.of_pairs(rejected_rewards)
