"""Features kept in memory: the same batches as from disk, where they fit, shared by the processes of a machine."""

import errno
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lr2ppo.data.annotations import Clip
from lr2ppo.data.dataset import ClipBatch, ClipDataset, ClipRequest
from lr2ppo.data.features import kept as kept_module
from lr2ppo.data.features.kept import KeptFeatures, keep_features
from lr2ppo.data.features.store import FeatureStore
from lr2ppo.data.features.writer import FeatureWriter
from lr2ppo.data.samplers import annotated_pairs, graded_lists, random_pairs, whole_clips
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.ops.trees import shape_of, tensors_of

CPU = torch.device("cpu")
TEXT_WIDTH, IMAGE_WIDTH, PER_FRAME = 5, 3, 2
# Labels and frames of each clip; one has no frames.
SIZES = {"a": (4, 3), "b": (7, 9), "c": (1, 0)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    path = tmp_path_factory.mktemp("kept") / "features.h5"
    rng = np.random.default_rng(0)
    with FeatureWriter(path, {"tokens_per_frame": PER_FRAME}) as writer:
        for name, (labels, frames) in SIZES.items():
            text = [rng.normal(size=(rng.integers(1, 6), TEXT_WIDTH)).astype(np.float32) for _ in range(labels)]
            writer.write(name, text, rng.normal(size=(frames * PER_FRAME, IMAGE_WIDTH)).astype(np.float32))
    return FeatureStore([path])


def make_clips() -> list[Clip]:
    clips = []
    for name, (labels, _) in SIZES.items():
        grades = np.arange(labels) % 3
        pairs = np.argwhere(grades[:, None] > grades)
        clips.append(Clip(name, tuple(f"label {n}" for n in range(labels)), grades, pairs=pairs))
    return clips


def keep(store: FeatureStore, processes: Processes, where: str = "memory", reserved: int = 0) -> KeptFeatures | None:
    return keep_features(where, store, list(SIZES), torch.float32, processes, reserved)  # type: ignore[arg-type]


def batch_of(dataset: ClipDataset, requests: list[ClipRequest]) -> ClipBatch:
    return dataset.collate([dataset[request] for request in requests]).to(CPU)


@pytest.mark.parametrize("frames", [2, 4, 20])
@pytest.mark.parametrize(("order", "exact"), [("even", True), ("even", False), ("random", False)])
def test_batches_are_those_read_from_disk_to_the_bit(
    order: str, exact: bool, frames: int, store: FeatureStore, alone: Processes
) -> None:
    clips = make_clips()
    read, looked_up = (
        ClipDataset(clips, store, frames=frames, frame_order=order, exact_frames=exact)  # type: ignore[arg-type]
        for _ in range(2)
    )
    looked_up.kept = keep(store, alone)
    draws = [graded_lists(clips, 5), annotated_pairs(clips, 4), random_pairs(clips, 6, 2)]
    for requests in [whole_clips(clips), *(draw(np.random.default_rng(1)) for draw in draws)]:
        expected, found = batch_of(read, requests), batch_of(looked_up, requests)
        assert found.kept is None
        assert shape_of(expected) == shape_of(found)
        assert all(map(torch.equal, tensors_of(expected), tensors_of(found)))


def test_what_is_read_does_not_depend_on_disk_any_more(store: FeatureStore, alone: Processes) -> None:
    dataset = ClipDataset(make_clips(), store, frames=2)
    dataset.kept = keep(store, alone)
    before = store.bytes_read
    batch_of(dataset, whole_clips(dataset.clips))
    assert store.bytes_read == before


def test_in_bfloat16_they_take_half_the_memory(store: FeatureStore, alone: Processes) -> None:
    single = keep(store, alone)
    half = keep_features("memory", store, list(SIZES), torch.bfloat16, alone, 0)
    assert single is not None
    assert half is not None
    assert half.gib == single.gib / 2
    torch.testing.assert_close(half.text.float(), single.text, rtol=0.01, atol=0.01)


@pytest.mark.parametrize(
    ("where", "free", "expected"), [("auto", 10**9, True), ("auto", 100, False), ("disk", 10**9, False)]
)
def test_they_are_kept_where_they_fit(
    where: str, free: int, expected: bool, store: FeatureStore, alone: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_module, "free_memory", lambda: free)
    assert (keep(store, alone, where) is not None) == expected


def test_where_they_do_not_fit_the_message_says_what_there_is(
    store: FeatureStore, alone: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_module, "free_memory", lambda: 100)
    with pytest.raises(UserError, match=r"data\.keep: found memory, where the features' 0\.00 GiB do not fit.*auto"):
        keep(store, alone, "memory")


def test_a_run_on_a_cpu_keeps_nothing_on_a_gpu(store: FeatureStore, alone: Processes) -> None:
    with pytest.raises(UserError, match=r"data\.keep: found gpu, but the run computes on the cpu; use data\.keep=auto"):
        keep(store, alone, "gpu")


@pytest.fixture
def together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The main one of two processes of a machine whose temporary folder is the test's."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = SimpleNamespace(rank=0, world_size=2, device=CPU, is_main=True, barrier=lambda: None)
    made.gather = lambda value: [value, value]
    return made


def test_processes_of_a_machine_share_one_copy(
    store: FeatureStore, tmp_path: Path, together: Any, alone: Processes
) -> None:
    shared = keep(store, together)
    own = keep(store, alone)
    assert shared is not None
    assert own is not None
    assert torch.equal(shared.text, own.text)
    assert torch.equal(shared.frames, own.frames)
    # Nothing is left of it, even if the processes are killed.
    assert list(tmp_path.iterdir()) == []


def test_a_full_temporary_folder_is_said_before_the_run_starts(
    store: FeatureStore, tmp_path: Path, together: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", fail)
    with pytest.raises(UserError, match=r"GiB cannot be shared there: No space left on device; set TMPDIR"):
        keep(store, together)
    assert list(tmp_path.iterdir()) == []
