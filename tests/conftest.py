"""A tiny world with a known right answer, for the stages' tests."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from lr2ppo.data import Clip, FeatureWriter, annotations, write_clips
from lr2ppo.distributed.processes import Processes

if TYPE_CHECKING:
    from tests.helpers.trained_world import TrainedWorld

REPOSITORY = Path(__file__).resolve().parents[1]
TOKENS, FRAMES, WIDTH, LABELS = 4, 3, 16, 6


# A shell makes its background jobs ignore SIGINT, and processes started by the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Keep tests in this process, even with several GPUs.
os.environ["NPROC"] = "1"
# Tests run side by side, and threads that wait for each other would slow all of them; their tensors are small.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of fixtures that open a browser, train all stages or serve a page; skips those of a GPU."""
    has_gpu = torch.cuda.is_available()
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))
        fixtures = getattr(item, "fixturenames", ())
        if "browser" in fixtures:
            item.add_marker("browser")
        if {"trained_world", "served"} & set(fixtures):
            item.add_marker("slow")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests, and the processes that they start, write nothing into the developer's own cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def alone() -> Processes:
    return Processes(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: source grades follow one feature of a label, target grades follow its negative."""
    root = tmp_path_factory.mktemp("tiny")
    write_tiny_world(root)
    return root


def write_tiny_world(root: Path) -> None:
    rng = np.random.default_rng(0)
    with FeatureWriter(root / "clean_feat.h5", {"tokens_per_frame": 1}) as store:
        source = [_clip(f"source-{i}", rng, store, sign=1) for i in range(32)]
        target = [_clip(f"target-{i}", rng, store, sign=-1) for i in range(32)]
        validation = [_clip(f"validation-{i}", rng, store, sign=-1) for i in range(13)]
        test = [_clip(f"test-{i}", rng, store, sign=-1) for i in range(17)]
    write_clips(root / annotations.SOURCE_TRAIN, source)
    write_clips(root / annotations.TARGET_TRAIN, [Clip(clip.id, clip.labels) for clip in target])
    write_clips(root / annotations.TARGET_PAIRS, [_with_pairs(clip) for clip in target])
    write_clips(root / annotations.VALIDATION, validation)
    write_clips(root / annotations.TEST, test)


@pytest.fixture
def tiny_overrides(tiny_world: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Overrides that run a stage of the mini preset on the tiny world; further overrides follow."""

    def overrides(*more: str) -> list[str]:
        return [f"data.root={tiny_world}", f"logs={tmp_path / 'logs'}", *more]

    return overrides


@pytest.fixture(scope="session")
def trained_world(tmp_path_factory: pytest.TempPathFactory) -> "TrainedWorld":
    """Trained runs of all stages, trained once; tests copy what they change."""
    from tests.helpers.trained_world import TrainedWorld

    return TrainedWorld.make(tmp_path_factory.mktemp("trained"))


def _clip(name: str, rng: np.random.Generator, store: FeatureWriter, sign: int) -> Clip:
    """A clip whose labels are graded by the thirds of `sign` times the first feature of all their tokens."""
    relevance = rng.permutation(LABELS)
    text = rng.normal(0, 0.1, size=(LABELS, TOKENS, WIDTH))
    text[:, :, 0] += (relevance[:, None] - (LABELS - 1) / 2) * 0.8
    lengths = rng.integers(2, TOKENS + 1, size=LABELS)
    store.write(
        name,
        [row[:length].astype(np.float32) for row, length in zip(text, lengths, strict=True)],
        rng.normal(size=(FRAMES, WIDTH)).astype(np.float32),
    )
    ranked = relevance if sign > 0 else LABELS - 1 - relevance
    return Clip(name, tuple(f"label {i}" for i in range(LABELS)), grades=ranked // 2)


def _with_pairs(clip: Clip) -> Clip:
    assert clip.grades is not None
    pairs = annotations.better_worse_pairs(clip.grades)
    return Clip(clip.id, clip.labels, clip.grades, pairs=pairs[::2])
