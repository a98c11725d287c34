"""What each stage reads of its clips, in an order set only by the seed and the epoch."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from lr2ppo.data.annotations import Clip, count_pairs, draw_numbers, graded, pick_pairs
from lr2ppo.data.dataset import ClipBatch, ClipDataset, ClipRequest, Positions, frames_seed
from lr2ppo.distributed.signals import follow_training_process
from lr2ppo.errors import UserError

Draw = Callable[[np.random.Generator], list[ClipRequest]]
T = TypeVar("T")


class EpochSampler(Sampler[list[ClipRequest]]):
    """Batches of one process: each global batch of `world_size * batch_size` requests is split over the processes."""

    def __init__(self, draw: Draw, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        """`draw` returns an epoch's requests in order, the same number each epoch."""
        self.draw, self.batch_size, self.seed = draw, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._first = 0
        self._requests = len(draw(np.random.default_rng(0)))

    @property
    def global_batch(self) -> int:
        """Requests per batch over all processes."""
        return self.batch_size * self.world_size

    def set_epoch(self, epoch: int, done: int = 0) -> None:
        """Set the epoch to iterate over next, without its first `done` requests."""
        self.epoch, self._first = epoch, done

    def __len__(self) -> int:
        return -(-self._requests // self.global_batch)

    def __iter__(self) -> Iterator[list[ClipRequest]]:
        requests = wrap_around(self.draw(np.random.default_rng([self.seed, self.epoch])), self.world_size)
        step = self.global_batch
        for start in range(self._first, len(requests), step):
            share = min(step, len(requests) - start) // self.world_size
            first = start + self.rank * share
            yield requests[first : first + share]


def wrap_around(items: Sequence[T], world_size: int) -> list[T]:
    """Repeat a few of the first items after the last, so that `world_size` processes can share them equally.

    With equal batches on all processes, gradients weigh the same.
    """
    return [*items, *islice(cycle(items), -len(items) % world_size)]


def graded_lists(clips: Sequence[Clip], max_labels: int, fill: bool = True) -> Draw:
    """Stage 1: every clip once, shuffled, with a list of at most `max_labels` graded labels.

    With `fill`, as published, shorter lists repeat labels to reach `max_labels`.
    """

    def draw(rng: np.random.Generator) -> list[ClipRequest]:
        requests = []
        for clip in rng.permutation(len(clips)).tolist():
            grades = graded(clips[clip])
            listed = fill_list(grades, max_labels) if fill else np.arange(min(len(grades), max_labels))
            labels, positions = np.unique(listed, return_inverse=True)
            requests.append(ClipRequest(clip, labels, listed=positions, seed=int(rng.integers(2**31))))
        return requests

    return draw


def fill_list(grades: Positions, length: int) -> Positions:
    """Label positions `[length]`: a longer list is cut; a shorter one repeats its relevant labels in turn."""
    positions = np.arange(len(grades))
    relevant = np.flatnonzero(grades > 0)
    filler = np.resize(relevant if len(relevant) else positions, max(0, length - len(grades)))
    return np.concatenate([positions[:length], filler])


def annotated_pairs(clips: Sequence[Clip], pairs_per_clip: int) -> Draw:
    """Stage 2: each annotated pair once, shuffled, up to `pairs_per_clip` per request; shown in random order."""

    def draw(rng: np.random.Generator) -> list[ClipRequest]:
        requests = []
        for clip, annotated in enumerate(clips):
            pairs = rng.permutation(annotated.pairs)
            for start in range(0, len(pairs), pairs_per_clip):
                requests.append(_annotated_request(clip, pairs[start : start + pairs_per_clip], rng))
        return [requests[i] for i in rng.permutation(len(requests))]

    return draw


def random_pairs(clips: Sequence[Clip], pairs_per_clip: int, visits: int) -> Draw:
    """Stage 3: every clip with at least two labels `visits` times, shuffled, each time with new random label pairs."""
    eligible = [clip for clip, item in enumerate(clips) if len(item.labels) > 1]

    def draw(rng: np.random.Generator) -> list[ClipRequest]:
        requests = []
        for clip in rng.permutation(np.repeat(eligible, visits)).tolist():
            count = len(clips[clip].labels)
            first = rng.integers(count, size=pairs_per_clip)
            second = (first + rng.integers(1, count, size=pairs_per_clip)) % count
            labels, positions = np.unique(np.stack([first, second], axis=1), return_inverse=True)
            pairs = positions.reshape(-1, 2)
            requests.append(ClipRequest(clip, labels, pairs=pairs, seed=int(rng.integers(2**31))))
        return requests

    return draw


def random_lists(clips: Sequence[Clip], labels_per_list: int, visits: int) -> Draw:
    """Stage 3: every clip with at least two labels `visits` times, shuffled, each time with random labels of it."""
    eligible = [clip for clip, item in enumerate(clips) if len(item.labels) > 1]

    def draw(rng: np.random.Generator) -> list[ClipRequest]:
        requests = []
        for clip in rng.permutation(np.repeat(eligible, visits)).tolist():
            labels = np.sort(rng.permutation(len(clips[clip].labels))[:labels_per_list])
            none = np.empty((0, 2), dtype=np.int64)
            requests.append(ClipRequest(clip, labels, pairs=none, seed=int(rng.integers(2**31))))
        return requests

    return draw


def taking_turns(draw: Draw, other: Draw, clips: int) -> Draw:
    """A request of `draw`, one of `other`, and so on; the shorter is drawn again until it is as long.

    Clips of `other` are counted on from `clips`.
    """

    def both(rng: np.random.Generator) -> list[ClipRequest]:
        own, more = draw(rng), other(rng)
        length = max(len(own), len(more))
        while len(own) < length:
            own += draw(rng)
        while len(more) < length:
            more += other(rng)
        moved = (replace(request, clip=clips + request.clip) for request in more)
        return [request for turn in zip(own[:length], moved, strict=False) for request in turn]

    return both


def whole_lists(draw: Draw, clips: Sequence[Clip]) -> Draw:
    """Extend each request of `draw` to all labels of its clip, for models that compare a clip's labels."""
    return lambda rng: [with_all_labels(request, clips[request.clip]) for request in draw(rng)]


def with_all_labels(request: ClipRequest, clip: Clip) -> ClipRequest:
    """Extend a request to all labels of its clip."""
    listed, pairs = (None if part is None else request.labels[part] for part in (request.listed, request.pairs))
    return replace(request, labels=np.arange(len(clip.labels)), listed=listed, pairs=pairs)


def whole_clips(clips: Sequence[Clip]) -> list[ClipRequest]:
    """Evaluation: every clip once with all its labels."""
    return [
        ClipRequest(clip, np.arange(len(item.labels)), seed=frames_seed(item.id)) for clip, item in enumerate(clips)
    ]


def graded_pairs(clips: Sequence[Clip], pairs_per_clip: int, seed: int) -> list[ClipRequest]:
    """Stage 2's validation: a fixed set of label pairs with different grades, up to `pairs_per_clip` per clip."""
    rng = np.random.default_rng(seed)
    requests = []
    for clip, item in enumerate(clips):
        grades = graded(item)
        if total := count_pairs(grades):
            chosen = pick_pairs(grades, draw_numbers(total, min(total, pairs_per_clip), rng))
            requests.append(_annotated_request(clip, chosen, rng))
    return requests


def evaluation_loader(
    dataset: ClipDataset,
    requests: Sequence[ClipRequest],
    *,
    batch_size: int,
    rank: int,
    world_size: int,
    workers: int = 0,
) -> Iterable[ClipBatch]:
    """Batches of this process's share of the requests: all processes together read each exactly once."""
    share = requests[rank::world_size]
    batches = [list(share[start : start + batch_size]) for start in range(0, len(share), batch_size)]
    return _loader(dataset, batches, workers)


class _Batches:
    """The batches of a loader, as often as it is iterated; a `UserError` of a worker process has its own message."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[ClipBatch]:
        try:
            yield from self._loader
        except UserError as error:
            # torch puts the worker's traceback in front of the message.
            raise UserError(str(error).rpartition(f"{UserError.__module__}.UserError: ")[2].strip()) from None


def training_loader(dataset: ClipDataset, sampler: EpochSampler, workers: int) -> Iterable[ClipBatch]:
    return _loader(dataset, sampler, workers, persistent=True)


def _loader(
    dataset: ClipDataset, batches: Iterable[list[ClipRequest]], workers: int, persistent: bool = False
) -> Iterable[ClipBatch]:
    # No more workers than cores, and none where nothing is read.
    workers = min(workers, os.cpu_count() or 1) if dataset.kept is None else 0
    return _Batches(
        DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=dataset.collate,
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            # From there a GPU takes them without waiting.
            pin_memory=workers > 0 and torch.cuda.is_available(),
            worker_init_fn=follow_training_process,
            # A separate generator, so that the loader draws nothing from the one that dropout uses.
            generator=torch.Generator(),
        )
    )


def _annotated_request(clip: int, pairs: Positions, rng: np.random.Generator) -> ClipRequest:
    """A request for (better, worse) pairs, each shown in random order."""
    first_is_better = rng.random(len(pairs)) < 0.5
    shown = np.where(first_is_better[:, None], pairs, pairs[:, ::-1])
    labels, positions = np.unique(shown, return_inverse=True)
    return ClipRequest(
        clip, labels, pairs=positions.reshape(-1, 2), first_is_better=first_is_better, seed=int(rng.integers(2**31))
    )
