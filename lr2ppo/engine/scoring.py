"""Score every clip of a dataset once, over all processes, and measure the orders that follow."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lr2ppo.data.annotations import Clip, graded
from lr2ppo.data.dataset import ClipBatch, ClipDataset, ClipRequest
from lr2ppo.data.samplers import evaluation_loader, whole_clips
from lr2ppo.engine.processes import Processes
from lr2ppo.metrics import CUTOFFS, fit_temperature, ndcg, pair_accuracy
from lr2ppo.models import PartialOrderModel, RelevanceRanker

Scores = NDArray[np.float64]
# Orders judged at once; bounds the memory of judging every pair of a long list.
JUDGED_AT_ONCE = 4096


@torch.inference_mode()
def score_clips(
    model: RelevanceRanker | PartialOrderModel,
    dataset: ClipDataset,
    processes: Processes,
    batch_size: int,
    workers: int = 0,
) -> list[Scores]:
    """Every label's score, `[labels]` a clip: a ranker's own, or the share of pairs that an order model lets it win."""
    requests = whole_clips(dataset.clips)
    loader = evaluation_loader(
        dataset, requests, batch_size=batch_size, rank=processes.rank, world_size=processes.world_size, workers=workers
    )
    training = model.training
    model.eval()
    mine: dict[int, Scores] = {}
    for batch in loader:
        batch = batch.to(processes.device)
        scores = rank_labels(model, batch) if isinstance(model, RelevanceRanker) else win_shares(model, batch)
        for clip, row, mask in zip(batch.clips.tolist(), scores, batch.label_mask, strict=True):
            mine[clip] = row[mask].double().cpu().numpy()
    model.train(training)
    everyone = {clip: scores for share in processes.gather(mine) for clip, scores in share.items()}
    return [everyone[clip] for clip in range(len(dataset))]


def rank_labels(model: RelevanceRanker, batch: ClipBatch) -> Tensor:
    """A ranker's scores of a batch: [B, L]."""
    scores: Tensor = model(batch.text, batch.frames, text_mask=batch.text_mask, frame_mask=batch.frame_mask)
    return scores


def win_shares(model: PartialOrderModel, batch: ClipBatch) -> Tensor:
    """For each label the share of pairs with another label of its clip, shown both ways, that it wins: [B, L]."""
    vectors = model.encoder(batch.text, batch.frames, text_mask=batch.text_mask, frame_mask=batch.frame_mask)
    margins, (first, second) = pair_margins(model, vectors)
    first_wins = 0.25 * (1 + margins.sign()).sum(0)
    both = batch.label_mask[:, first] & batch.label_mask[:, second]
    wins = torch.zeros_like(batch.grades)
    wins.index_add_(1, first, first_wins * both)
    wins.index_add_(1, second, (1 - first_wins) * both)
    return wins / (batch.label_mask.sum(1, keepdim=True) - 1).clamp(min=1)


def pair_margins(model: PartialOrderModel, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """For each pair of labels, by how much the reward of putting its first label first exceeds that of the reverse.

    Shapes: vectors: [B, L, D]. Returns margins [2, B, pairs], of each pair shown as it is and the other way round, and
    the pairs [2, pairs], positions of the first and of the second label.
    """
    labels = vectors.shape[1]
    first, second = pairs = torch.triu_indices(labels, labels, offset=1, device=vectors.device)
    forward, backward = torch.stack([first, second], 1), torch.stack([second, first], 1)
    both_ways = []
    for shown in (forward, backward):
        margins = []
        for part in torch.arange(len(first), device=vectors.device).split(JUDGED_AT_ONCE):
            orders = torch.stack([torch.cat([shown[part], proposed[part]], 1) for proposed in (forward, backward)])
            rewards = model.judge(vectors, orders.flatten(0, 1).expand(len(vectors), -1, -1)).unflatten(1, (2, -1))
            margins.append(rewards[:, 0] - rewards[:, 1])
        both_ways.append(torch.cat(margins, 1))
    return torch.stack(both_ways), pairs


def preferences(model: PartialOrderModel, vectors: Tensor, temperature: float) -> Tensor:
    """How surely people put each label before each other: vectors [B, L, D] -> [B, L, L] of float64, row before column.

    It is the logistic function of the margin, averaged over both ways to show the pair, over the temperature; 0.5 on
    the diagonal.
    """
    margins, (first, second) = pair_margins(model, vectors)
    first_wins = torch.sigmoid(margins.double().mean(0) / temperature)
    table = torch.full((len(vectors), vectors.shape[1], vectors.shape[1]), 0.5, dtype=torch.float64)
    table = table.to(vectors.device)
    table[:, first, second], table[:, second, first] = first_wins, 1 - first_wins
    return table


def ranking_metrics(clips: Sequence[Clip], scores: Sequence[Scores]) -> dict[str, Scores]:
    """Each clip's NDCG at every cut-off and its pair accuracy: name -> [clips]."""
    padded, grades, mask = pad_lists(scores, [graded(clip) for clip in clips])
    metrics = {name: ndcg(padded, grades, mask, k).numpy() for name, k in CUTOFFS.items()}
    metrics["pair_accuracy"] = pair_accuracy(padded, grades, mask).numpy()
    return metrics


def validation_ndcg(
    model: RelevanceRanker, dataset: ClipDataset, processes: Processes, batch_size: int
) -> dict[str, float]:
    """Mean NDCG at every cut-off over a validation set."""
    metrics = ranking_metrics(dataset.clips, score_clips(model, dataset, processes, batch_size))
    return {name: float(metrics[name].mean()) for name in CUTOFFS}


def pad_lists(scores: Sequence[Scores], grades: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor, Tensor]:
    """Lists of different lengths as `[clips, labels]` tensors of scores and grades, and their mask."""
    rows = [torch.from_numpy(np.asarray(row)) for row in scores]
    mask = pad_sequence([torch.ones(len(row), dtype=torch.bool) for row in rows], batch_first=True)
    targets = pad_sequence([torch.from_numpy(np.asarray(row)) for row in grades], batch_first=True)
    return pad_sequence(rows, batch_first=True), targets, mask


@torch.inference_mode()
def judged_pairs(
    model: PartialOrderModel,
    dataset: ClipDataset,
    requests: Sequence[ClipRequest],
    processes: Processes,
    batch_size: int,
) -> dict[str, float]:
    """How a reward model judges annotated pairs: the share whose better order it rewards more, and its temperature."""
    loader = evaluation_loader(
        dataset, requests, batch_size=batch_size, rank=processes.rank, world_size=processes.world_size
    )
    training = model.training
    model.eval()
    mine: list[float] = []
    for batch in loader:
        chosen, rejected = preference_rewards(model, batch.to(processes.device))
        mine += (chosen - rejected).double().tolist()
    model.train(training)
    margins = torch.tensor([margin for share in processes.gather(mine) for margin in share], dtype=torch.float64)
    return {"pair_accuracy": float((margins > 0).double().mean()), "temperature": fit_temperature(margins)}


def preference_rewards(model: torch.nn.Module, batch: ClipBatch) -> tuple[Tensor, Tensor]:
    """Rewards of a batch's annotated pairs with the better and with the worse label proposed first: [pairs] each."""
    shown, swapped = batch.pairs, batch.pairs.flip(-1)
    better_first = torch.where(batch.first_is_better.unsqueeze(-1), shown, swapped)
    chosen = torch.cat([shown, better_first], dim=-1)
    rejected = torch.cat([shown, better_first.flip(-1)], dim=-1)
    rewards = model(
        batch.text,
        batch.frames,
        torch.cat([chosen, rejected], dim=1),
        text_mask=batch.text_mask,
        frame_mask=batch.frame_mask,
    )
    chosen_rewards, rejected_rewards = rewards.chunk(2, dim=1)
    return chosen_rewards[batch.pair_mask], rejected_rewards[batch.pair_mask]
