"""What the weights of a rollout did on a batch, and how it is kept in a checkpoint."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lr2ppo.data.dataset import ClipBatch, ClipDataset, ClipRequest, collate
from lr2ppo.engine.checkpoints import Own
from lr2ppo.engine.processes import Processes

OUTCOMES = ("scores", "proposed", "reward", "value")
DRAWN = ("clips", "labels", "label_mask", "pairs", "seeds")


@dataclass(frozen=True)
class Rollout:
    """What the weights of the rollout did on a batch, over its pairs.

    scores [B, P, 2]; proposed [B, P, 2], the positions 0 and 1 in the proposed order; reward, value [B, P].
    """

    batch: ClipBatch
    scores: Tensor
    proposed: Tensor
    reward: Tensor
    value: Tensor


def pack_rollouts(rollouts: Sequence[Rollout], learned: int) -> Own:
    """Stored rollouts, of which `learned` steps were made; of their features only what to read again."""
    tensors = {}
    for number, rollout in enumerate(rollouts):
        for name in OUTCOMES:
            tensors[f"{number}.{name}"] = getattr(rollout, name).detach()
        for name in DRAWN:
            tensors[f"{number}.{name}"] = getattr(rollout.batch, name)
    return Own(stored={"rollouts": len(rollouts), "learned": learned}, tensors=tensors)


def unpack_rollouts(owns: Sequence[Own], dataset: ClipDataset, processes: Processes) -> tuple[list[Rollout], int]:
    """This process's rollouts and how many steps were made of them, from what every process of the run had stored."""
    stored: dict[str, Any] = owns[0].stored
    if not stored:
        return [], 0
    rank, world_size = processes.rank, processes.world_size
    rollouts = []
    for number in range(stored["rollouts"]):
        requests = [request for own in owns for request in _requests(own.tensors, number)]
        share = len(requests) // world_size
        mine = slice(rank * share, (rank + 1) * share)
        outcomes = {name: torch.cat([own.tensors[f"{number}.{name}"] for own in owns])[mine] for name in OUTCOMES}
        batch = collate([dataset[request] for request in requests[mine]]).to(processes.device)
        rollouts.append(Rollout(batch, **{name: outcome.to(processes.device) for name, outcome in outcomes.items()}))
    return rollouts, stored["learned"]


def _requests(tensors: dict[str, Tensor], number: int) -> list[ClipRequest]:
    clips, labels, mask, pairs, seeds = (tensors[f"{number}.{name}"] for name in DRAWN)
    return [
        ClipRequest(int(clip), own[real].numpy(), pairs=shown.numpy(), seed=int(seed))
        for clip, own, real, shown, seed in zip(clips, labels, mask, pairs, seeds, strict=True)
    ]
