"""The dataset, its batches, and the order in which each stage reads clips."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from lr2ppo.config.schema import DataConfig, ModelConfig
from lr2ppo.data.annotations import Clip, write_clips
from lr2ppo.data.dataset import ClipBatch, ClipDataset, ClipRequest, collate, open_dataset, open_store
from lr2ppo.data.features.store import FeatureStore
from lr2ppo.data.features.writer import FeatureWriter
from lr2ppo.data.samplers import (
    EpochSampler,
    annotated_pairs,
    evaluation_loader,
    fill_list,
    graded_lists,
    graded_pairs,
    random_pairs,
    taking_turns,
    training_loader,
    whole_clips,
)
from lr2ppo.errors import UserError
from lr2ppo.ops.trees import shape_of, tensors_of

TEXT_WIDTH, IMAGE_WIDTH = 3, 4
MODERATE = settings(deadline=None, max_examples=60)
# Labels and frames of each clip: one of each, usual numbers, and more than the stages use.
SHAPES = ((1, 1), (2, 3), (7, 4), (5, 6), (25, 9))


def text_features(clip: int, label: int) -> NDArray[np.float32]:
    """Tokens that hold their clip, label and token; label 0 has 1 token, label 1 has 2, and so on to 5."""
    tokens = 1 + label % 5
    return np.array([[clip + 1, label, token] for token in range(tokens)], dtype=np.float32)


def frame_features(clip: int, frame: int) -> NDArray[np.float32]:
    return np.array([clip + 1, frame, 0, 0], dtype=np.float32)


def draw_clip(number: int, labels: int, frames: int) -> Clip:
    rng = np.random.default_rng(number)
    grades = rng.permutation(np.arange(labels) % 3)
    pairs = np.argwhere(grades[:, None] > grades[None, :])
    return Clip(
        id=f"movie/{number}",
        labels=tuple(f"label {label}" for label in range(labels)),
        grades=grades,
        images=("frame",) * frames,
        pairs=rng.permutation(pairs)[:10].reshape(-1, 2),
    )


CLIPS = [draw_clip(number, labels, frames) for number, (labels, frames) in enumerate(SHAPES)]


def write_features(path: Path, clips: Sequence[Clip]) -> None:
    with FeatureWriter(path, {"tokens_per_frame": 1}) as writer:
        for number, clip in enumerate(clips):
            text = [text_features(number, label) for label in range(len(clip.labels))]
            writer.write(clip.id, text, np.stack([frame_features(number, f) for f in range(len(clip.images))]))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    path = tmp_path_factory.mktemp("features") / "clean_feat.h5"
    write_features(path, CLIPS)
    return FeatureStore([path])


@pytest.fixture(scope="module")
def dataset(store: FeatureStore) -> ClipDataset:
    return ClipDataset(CLIPS, store, frames=4)


def positions(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def assert_same_batches(found: Iterable[ClipBatch], expected: Iterable[ClipBatch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids
        assert shape_of(one) == shape_of(other)
        assert all(map(torch.equal, tensors_of(one), tensors_of(other)))


def numbered(count: int) -> Callable[[np.random.Generator], list[ClipRequest]]:
    """An epoch of requests, shuffled, one per clip."""

    def draw(rng: np.random.Generator) -> list[ClipRequest]:
        return [ClipRequest(clip, positions(0)) for clip in rng.permutation(count).tolist()]

    return draw


def epoch_of(sampler: EpochSampler) -> list[list[int]]:
    return [[request.clip for request in batch] for batch in sampler]


def test_a_padded_batch_holds_each_clips_features_and_masks(dataset: ClipDataset) -> None:
    batch = collate([dataset[request] for request in whole_clips(CLIPS)])
    assert len(batch) == len(CLIPS)
    assert batch.clips.tolist() == [0, 1, 2, 3, 4]
    assert batch.text.shape == (5, 25, 5, TEXT_WIDTH)
    assert batch.frames.shape == (5, 4, IMAGE_WIDTH)
    assert batch.label_mask.sum(1).tolist() == [labels for labels, _ in SHAPES]
    assert batch.frame_mask.sum(1).tolist() == [min(frames, 4) for _, frames in SHAPES]
    for position, clip in enumerate(CLIPS):
        assert clip.grades is not None
        count = len(clip.labels)
        assert batch.label_mask[position, :count].all()
        assert batch.grades[position, :count].tolist() == clip.grades.tolist()
        for label in range(count):
            tokens = torch.from_numpy(text_features(position, label))
            assert batch.text_mask[position, label].tolist() == [True] * len(tokens) + [False] * (5 - len(tokens))
            assert torch.equal(batch.text[position, label, : len(tokens)], tokens)


def test_padding_is_zeros_throughout(dataset: ClipDataset) -> None:
    batch = collate([dataset[request] for request in whole_clips(CLIPS)])
    assert not batch.text[~batch.text_mask].any()
    assert not batch.text_mask[~batch.label_mask].any()
    assert not batch.frames[~batch.frame_mask].any()
    assert not batch.grades[~batch.label_mask].any()


def test_a_batch_moves_whole_to_a_device(dataset: ClipDataset) -> None:
    batch = collate([dataset[request] for request in whole_clips(CLIPS)])
    moved = batch.to(torch.device("meta"))
    assert moved.ids == batch.ids
    assert len(list(tensors_of(moved))) == len(list(tensors_of(batch)))
    assert all(tensor.device.type == "meta" for tensor in tensors_of(moved))


def test_ungraded_clips_have_grades_of_0(store: FeatureStore) -> None:
    ungraded = [replace(clip, grades=None) for clip in CLIPS]
    batch = collate([ClipDataset(ungraded, store, frames=4)[request] for request in whole_clips(ungraded)])
    assert batch.grades.shape == (5, 25)
    assert not batch.grades.any()


@MODERATE
@given(data=st.data())
def test_a_request_for_some_labels_gets_those_labels(dataset: ClipDataset, data: st.DataObject) -> None:
    clip = data.draw(st.integers(0, len(CLIPS) - 1))
    grades = CLIPS[clip].grades
    assert grades is not None
    some = data.draw(st.lists(st.integers(0, len(grades) - 1), min_size=1, unique=True))
    batch = collate([dataset[ClipRequest(clip, positions(*some))]])
    assert batch.text[0, :, 0, 1].tolist() == some
    assert batch.text_mask[0].sum(-1).tolist() == [1 + label % 5 for label in some]
    assert batch.grades[0].tolist() == grades[some].tolist()


def shown_labels(batch: ClipBatch, item: int) -> list[tuple[int, int]]:
    """A clip's pairs as positions in its label list, from the text features."""
    labels = batch.text[item, :, 0, 1]
    return [(int(labels[a]), int(labels[b])) for a, b in batch.pairs[item][batch.pair_mask[item]].tolist()]


def test_pairs_of_a_padded_batch_point_at_the_labels_meant(dataset: ClipDataset) -> None:
    requests = [
        ClipRequest(2, positions(1, 4, 6), pairs=np.array([[2, 0], [1, 2], [0, 1]])),
        ClipRequest(1, positions(0, 1), pairs=np.array([[1, 0]])),
        ClipRequest(4, positions(3, 20)),
    ]
    batch = collate([dataset[request] for request in requests])
    assert batch.pairs.shape == (3, 3, 2)
    assert batch.pair_mask.sum(1).tolist() == [3, 1, 0]
    assert shown_labels(batch, 0) == [(6, 1), (4, 6), (1, 4)]
    assert shown_labels(batch, 1) == [(1, 0)]


@MODERATE
@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 25))
def test_a_short_list_repeats_its_relevant_labels_in_turn_and_a_long_one_is_cut(grades: list[int], length: int) -> None:
    expected = list(range(len(grades)))[:length]
    relevant = [label for label, grade in enumerate(grades) if grade > 0] or list(range(len(grades)))
    turn = 0
    while len(expected) < length:
        expected.append(relevant[turn % len(relevant)])
        turn += 1
    assert fill_list(np.array(grades), length).tolist() == expected


@pytest.mark.parametrize("max_labels", [1, 6, 20])
def test_stage_1_lists_each_clip_once_with_its_filled_list(dataset: ClipDataset, max_labels: int) -> None:
    requests = graded_lists(CLIPS, max_labels)(np.random.default_rng(3))
    assert sorted(request.clip for request in requests) == list(range(len(CLIPS)))
    batch = collate([dataset[request] for request in requests])
    assert batch.listed.shape == (len(CLIPS), max_labels)
    for item, clip in enumerate(batch.clips.tolist()):
        grades = CLIPS[clip].grades
        assert grades is not None
        expected = fill_list(grades, max_labels)
        assert batch.text[item, batch.listed[item], 0, 1].tolist() == expected.tolist()
        assert batch.grades[item, batch.listed[item]].tolist() == grades[expected].tolist()
        assert batch.label_mask[item].sum() == len(set(expected.tolist())), "a repeated label is read once"


def test_stage_1_needs_grades() -> None:
    with pytest.raises(ValueError, match="movie/1 has no grades"):
        graded_lists([CLIPS[0], replace(CLIPS[1], grades=None)], 20)(np.random.default_rng(0))


@MODERATE
@given(st.integers(1, 20), st.integers(1, 40))
def test_even_frames_are_in_time_order_equally_spaced_from_first_to_last(wanted: int, available: int) -> None:
    chosen = ClipDataset([], None, frames=wanted).choose_frames(available, seed=0).tolist()  # type: ignore[arg-type]
    assert len(chosen) == min(wanted, available)
    assert len(set(chosen)) == len(chosen)
    assert chosen == sorted(chosen)
    if len(chosen) > 1:
        assert (chosen[0], chosen[-1]) == (0, available - 1)
        gaps = [later - earlier for earlier, later in pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1


@MODERATE
@given(st.integers(1, 20), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_random_frames_are_different_ones_drawn_by_the_requests_seed(wanted: int, available: int, seed: int) -> None:
    dataset = ClipDataset([], None, frames=wanted, frame_order="random")  # type: ignore[arg-type]
    chosen = dataset.choose_frames(available, seed).tolist()
    assert len(chosen) == len(set(chosen)) == min(wanted, available)
    assert set(chosen) <= set(range(available))
    assert dataset.choose_frames(available, seed).tolist() == chosen


def test_random_frames_come_in_random_order_and_reach_every_frame() -> None:
    dataset = ClipDataset([], None, frames=4, frame_order="random")  # type: ignore[arg-type]
    drawn = [tuple(dataset.choose_frames(6, seed).tolist()) for seed in range(50)]
    assert len(set(drawn)) > 40
    assert any(order != tuple(sorted(order)) for order in drawn)
    assert {frame for order in drawn for frame in order} == set(range(6))


@pytest.mark.parametrize("order", ["even", "random"])
@pytest.mark.parametrize("available", [1, 3, 4, 9])
def test_exact_frames_repeat_a_short_clips_frames_equally_often(order: str, available: int) -> None:
    dataset = ClipDataset([], None, frames=8, frame_order=order, exact_frames=True)  # type: ignore[arg-type]
    chosen = Counter(dataset.choose_frames(available, seed=5).tolist())
    assert chosen.total() == 8
    assert len(chosen) == min(available, 8)
    assert max(chosen.values()) - min(chosen.values()) <= 1 or order == "even"


def test_frames_of_a_batch_are_those_chosen(store: FeatureStore) -> None:
    even = ClipDataset(CLIPS, store, frames=4)[ClipRequest(4, positions(0))]
    assert even.frames[:, :2].tolist() == [[5, 0], [5, 3], [5, 5], [5, 8]]
    exact = ClipDataset(CLIPS, store, frames=4, exact_frames=True)[ClipRequest(1, positions(0))]
    assert exact.frames[:, 1].tolist() == [0, 1, 1, 2]
    shuffled = ClipDataset(CLIPS, store, frames=4, frame_order="random")
    drawn = {tuple(shuffled[ClipRequest(4, positions(0), seed=seed)].frames[:, 1].tolist()) for seed in range(20)}
    assert len(drawn) > 10


def test_tokens_of_a_frame_are_taken_together(tmp_path: Path) -> None:
    rows = np.arange(5 * 3 * IMAGE_WIDTH, dtype=np.float32).reshape(15, IMAGE_WIDTH)
    with FeatureWriter(tmp_path / "feat.h5", {"tokens_per_frame": 3}) as writer:
        writer.write("clip", [np.ones((2, TEXT_WIDTH), np.float32)], rows)
    dataset = ClipDataset([Clip("clip", ("a",))], FeatureStore([tmp_path / "feat.h5"]), frames=2)
    frames = dataset[ClipRequest(0, positions(0))].frames
    assert torch.equal(frames, torch.from_numpy(np.concatenate([rows[:3], rows[12:]])))


@MODERATE
@given(st.integers(1, 50), st.integers(1, 8), st.integers(0, 100), st.integers(0, 20))
def test_an_epoch_on_one_process_reads_every_request_once(count: int, size: int, seed: int, epoch: int) -> None:
    sampler = EpochSampler(numbered(count), batch_size=size, seed=seed)
    sampler.set_epoch(epoch)
    batches = epoch_of(sampler)
    assert sorted(clip for batch in batches for clip in batch) == list(range(count))
    assert len(batches) == len(sampler)
    assert all(len(batch) == size for batch in batches[:-1])
    again = EpochSampler(numbered(count), batch_size=size, seed=seed)
    again.set_epoch(epoch)
    assert epoch_of(again) == batches == epoch_of(sampler)


def test_epochs_and_seeds_have_different_orders() -> None:
    orders = []
    for seed in (1, 2):
        sampler = EpochSampler(numbered(20), batch_size=20, seed=seed)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            orders.append(tuple(epoch_of(sampler)[0]))
    assert len(set(orders)) == 6


@MODERATE
@given(st.integers(1, 60), st.integers(1, 6), st.integers(2, 5), st.integers(0, 5))
def test_processes_get_equal_batches_that_together_cover_the_epoch(
    count: int, size: int, processes: int, epoch: int
) -> None:
    assume(count >= processes)
    shares = []
    for rank in range(processes):
        sampler = EpochSampler(numbered(count), batch_size=size, seed=7, rank=rank, world_size=processes)
        sampler.set_epoch(epoch)
        shares.append(epoch_of(sampler))
        assert len(shares[-1]) == len(sampler)
    lengths = [[len(batch) for batch in share] for share in shares]
    assert all(length == lengths[0] for length in lengths)
    assert min(lengths[0]) >= 1
    assert max(lengths[0]) <= size
    seen = Counter(clip for share in shares for batch in share for clip in batch)
    assert set(seen) == set(range(count))
    assert seen.total() - count < processes, "no more is read twice than evens the last batch out"
    assert max(seen.values()) <= 2


@MODERATE
@given(st.integers(1, 30), st.integers(1, 6), st.integers(0, 5))
def test_two_processes_see_the_global_batches_of_one_with_twice_the_size(half: int, size: int, epoch: int) -> None:
    samplers = [EpochSampler(numbered(2 * half), batch_size=2 * size, seed=7)]
    samplers += [EpochSampler(numbered(2 * half), batch_size=size, seed=7, rank=rank, world_size=2) for rank in (0, 1)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    alone, first, second = map(epoch_of, samplers)
    assert [one + other for one, other in zip(first, second, strict=True)] == alone


def original_pairs(request: ClipRequest) -> list[tuple[int, int]]:
    """A request's pairs as (better, worse) positions in the clip's label list."""
    assert request.pairs is not None
    assert request.first_is_better is not None
    shown = request.labels[request.pairs]
    ordered = np.where(request.first_is_better[:, None], shown, shown[:, ::-1])
    return [(int(better), int(worse)) for better, worse in ordered]


@pytest.mark.parametrize("pairs_per_clip", [1, 3, 10, 50])
def test_stage_2_reads_each_annotated_pair_once_and_knows_the_better_label(pairs_per_clip: int) -> None:
    requests = annotated_pairs(CLIPS, pairs_per_clip)(np.random.default_rng(1))
    found = Counter((request.clip, *pair) for request in requests for pair in original_pairs(request))
    assert found == Counter((number, *pair) for number, clip in enumerate(CLIPS) for pair in clip.pairs.tolist())
    assert all(len(original_pairs(request)) <= pairs_per_clip for request in requests)
    assert len(requests) == sum(-(-len(clip.pairs) // pairs_per_clip) for clip in CLIPS)


@MODERATE
@given(first=st.integers(1, 9), second=st.integers(1, 9), seed=st.integers(0, 9))
def test_requests_of_two_kinds_take_turns_and_the_fewer_come_again(first: int, second: int, seed: int) -> None:
    requests = taking_turns(numbered(first), numbered(second), clips=100)(np.random.default_rng(seed))
    clips = [request.clip for request in requests]
    assert len(clips) == 2 * max(first, second)
    for kind, count, start in ((clips[::2], first, 0), (clips[1::2], second, 100)):
        often = Counter(kind)
        assert set(often) == set(range(start, start + count))
        assert max(often.values()) - min(often.values()) <= 1


def test_stage_2_shows_pairs_in_a_new_random_order_each_epoch(dataset: ClipDataset) -> None:
    sampler = EpochSampler(annotated_pairs(CLIPS, 20), batch_size=5, seed=0)
    shown: set[tuple[int, int, int]] = set()
    for epoch in range(8):
        sampler.set_epoch(epoch)
        for batch in training_loader(dataset, sampler, workers=0):
            for item, clip in enumerate(batch.clips.tolist()):
                grades = CLIPS[clip].grades
                assert grades is not None
                better = batch.first_is_better[item][batch.pair_mask[item]].tolist()
                for (first, second), first_is_better in zip(shown_labels(batch, item), better, strict=True):
                    assert (grades[first] > grades[second]) == first_is_better
                    shown.add((clip, first, second))
    wanted = {(number, *pair) for number, clip in enumerate(CLIPS) for pair in clip.pairs.tolist()}
    assert wanted | {(clip, worse, better) for clip, better, worse in wanted} == shown


@MODERATE
@given(st.integers(0, 1000), st.integers(1, 40), st.integers(1, 3))
def test_stage_3_draws_pairs_of_two_labels_and_visits_each_clip_equally_often(
    seed: int, pairs: int, visits: int
) -> None:
    requests = random_pairs(CLIPS, pairs, visits)(np.random.default_rng(seed))
    visited = Counter(request.clip for request in requests)
    assert visited == dict.fromkeys(range(1, len(CLIPS)), visits), "a clip of one label has no pair"
    for request in requests:
        assert request.pairs is not None
        chosen = request.labels[request.pairs]
        assert chosen.shape == (pairs, 2)
        assert (chosen[:, 0] != chosen[:, 1]).all()
        assert chosen.min() >= 0
        assert chosen.max() < len(CLIPS[request.clip].labels)
        assert sorted(set(request.pairs.ravel().tolist())) == list(range(len(request.labels))), (
            "no label is read without need"
        )


def test_stage_3_draws_every_pair_both_ways_with_equal_chance() -> None:
    (request,) = random_pairs([CLIPS[3]], 20_000, 1)(np.random.default_rng(0))
    assert request.pairs is not None
    drawn = Counter(map(tuple, request.labels[request.pairs].tolist()))
    assert len(drawn) == 20
    assert all(count == pytest.approx(1000, abs=150) for count in drawn.values())


def test_stage_3_draws_new_pairs_each_epoch() -> None:
    draw = random_pairs(CLIPS, 10, 1)
    first, second = (
        {request.clip: request.labels[request.pairs].tolist() for request in draw(np.random.default_rng([7, epoch]))}
        for epoch in (0, 1)
    )
    assert all(first[clip] != second[clip] for clip in (3, 4))


def test_validation_pairs_are_a_fixed_set_of_untied_pairs() -> None:
    requests = graded_pairs(CLIPS, 15, seed=3)
    assert [request.clip for request in requests] == [1, 2, 3, 4], "a clip of one label has no pair"
    for request in requests:
        grades = CLIPS[request.clip].grades
        assert grades is not None
        pairs = original_pairs(request)
        untied = int((grades[:, None] > grades[None, :]).sum())
        assert len(pairs) == len(set(pairs)) == min(15, untied)
        assert all(grades[better] > grades[worse] for better, worse in pairs)
    again, other = graded_pairs(CLIPS, 15, seed=3), graded_pairs(CLIPS, 15, seed=4)
    assert [original_pairs(request) for request in again] == [original_pairs(request) for request in requests]
    assert [original_pairs(request) for request in other] != [original_pairs(request) for request in requests]


def test_validation_pairs_need_grades() -> None:
    with pytest.raises(ValueError, match="movie/2 has no grades"):
        graded_pairs([replace(CLIPS[2], grades=None)], 15, seed=3)


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_evaluation_reads_each_clip_once_over_all_processes(
    dataset: ClipDataset, processes: int, batch_size: int
) -> None:
    seen: list[int] = []
    for rank in range(processes):
        loader = evaluation_loader(dataset, whole_clips(CLIPS), batch_size=batch_size, rank=rank, world_size=processes)
        for batch in loader:
            assert len(batch) <= batch_size
            assert batch.label_mask.sum(1).tolist() == [len(CLIPS[clip].labels) for clip in batch.clips.tolist()]
            seen += batch.clips.tolist()
    assert sorted(seen) == list(range(len(CLIPS)))


@pytest.mark.parametrize("workers", [1, 2])
def test_training_batches_do_not_depend_on_the_number_of_workers(store: FeatureStore, workers: int) -> None:
    dataset = ClipDataset(CLIPS, store, frames=3, frame_order="random")

    def two_epochs(count: int) -> list[ClipBatch]:
        sampler = EpochSampler(random_pairs(CLIPS, 6, 2), batch_size=3, seed=5)
        loader = training_loader(dataset, sampler, count)
        batches = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            batches += list(loader)
        return batches

    assert_same_batches(two_epochs(workers), two_epochs(0))


def test_evaluation_batches_do_not_depend_on_the_number_of_workers(store: FeatureStore) -> None:
    dataset = ClipDataset(CLIPS, store, frames=3, frame_order="random")

    def batches(workers: int) -> Iterable[ClipBatch]:
        requests = whole_clips(CLIPS)
        return evaluation_loader(dataset, requests, batch_size=2, rank=0, world_size=1, workers=workers)

    assert_same_batches(batches(2), batches(0))


def test_training_does_not_touch_the_global_random_state(dataset: ClipDataset) -> None:
    def state() -> tuple[Tensor, bytes]:
        return torch.get_rng_state(), np.random.get_state(legacy=False)["state"]["key"].tobytes()  # noqa: NPY002

    before = state()
    sampler = EpochSampler(random_pairs(CLIPS, 6, 1), batch_size=3, seed=5)
    for epoch in range(2):
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
    whole_clips(CLIPS)
    after = state()
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


def model_config(head: Literal["flatten", "pooled"]) -> ModelConfig:
    return ModelConfig(head=head, attention="scaled", width=8, heads=2, dropout=0.0)


def data_config(root: Path, features: str | tuple[str, ...] = "clean_feat.h5") -> DataConfig:
    return DataConfig(
        root=root,
        features=features,  # type: ignore[arg-type]
        train="train.json",
        validation="val.json",
        test="test.json",
        frames=4,
        frame_order="even",
        workers=0,
    )


def test_feature_files_may_be_named_by_a_pattern(tmp_path: Path) -> None:
    for number in range(3):
        with FeatureWriter(tmp_path / f"feat-{number}.h5", {"tokens_per_frame": 1}) as writer:
            writer.write(
                f"clip-{number}", [np.ones((2, TEXT_WIDTH), np.float32)], np.ones((1, IMAGE_WIDTH), np.float32)
            )
    found = open_store(data_config(tmp_path, "feat-*.h5"))
    assert [path.name for path in found.paths] == ["feat-0.h5", "feat-1.h5", "feat-2.h5"]
    some = open_store(data_config(tmp_path, ("feat-2.h5", "feat-[0]*")))
    assert [path.name for path in some.paths] == ["feat-2.h5", "feat-0.h5"]
    with pytest.raises(UserError, match=r"nothing in .* matches other-\*\.h5"):
        open_store(data_config(tmp_path, "other-*.h5"))


def test_an_annotation_file_opens_with_its_features(tmp_path: Path) -> None:
    write_features(tmp_path / "clean_feat.h5", CLIPS)
    write_clips(tmp_path / "train.json", CLIPS)
    config = data_config(tmp_path)
    dataset = open_dataset(config, config.train, "grades", open_store(config), model_config("flatten"))
    assert len(dataset) == len(CLIPS)
    assert (dataset.frames, dataset.frame_order, dataset.exact_frames) == (4, "even", True)
    item = dataset[whole_clips(dataset.clips)[2]]
    assert item.text[3, : item.lengths[3]].tolist() == text_features(2, 3).tolist()


def test_all_clips_that_do_not_fit_their_features_are_reported_at_once(tmp_path: Path) -> None:
    write_features(tmp_path / "clean_feat.h5", CLIPS)
    with h5py.File(tmp_path / "clean_feat.h5", "a") as file:
        del file["movie/2"]
        del file["movie/3/img_emb"]
        file["movie/3/img_emb"] = np.ones((1, 3, IMAGE_WIDTH + 2))
    longer = replace(CLIPS[1], labels=("a", "b", "c"), grades=positions(0, 1, 2))
    write_clips(tmp_path / "train.json", [CLIPS[0], longer, *CLIPS[2:]])
    config = data_config(tmp_path)
    with pytest.raises(UserError) as caught:
        open_dataset(config, config.train, "grades", open_store(config), model_config("flatten"))
    message = str(caught.value)
    assert "3 faults found; extract its features again" in message
    assert "clip movie/1: found features of 2 labels, wanted 3" in message
    assert "clip movie/2: has no features" in message
    assert "clip movie/3: found feature widths (3, 6), others have (3, 4)" in message


def test_few_requests_reach_every_one_of_many_processes() -> None:
    requests = [ClipRequest(0, np.array([0])), ClipRequest(1, np.array([0]))]
    samplers = [EpochSampler(lambda _: list(requests), batch_size=2, seed=0, rank=r, world_size=5) for r in range(5)]
    assert [len(batch) for sampler in samplers for batch in sampler] == [1] * 5
