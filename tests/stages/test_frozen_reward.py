"""The frozen reward model: precomputed vectors give the full model's rewards, and are cached for the next run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from lr2ppo.config.schema import ModelConfig, Precision
from lr2ppo.data import ClipDataset, FeatureStore, annotations, read_clips
from lr2ppo.data.samplers import EpochSampler, random_pairs, training_loader
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.models import PartialOrderModel
from lr2ppo.policies.frozen_reward import FrozenReward, open_frozen_reward
from tests.conftest import FRAMES, WIDTH

FEATURES = "a fingerprint"
SHAPE = ModelConfig(head="pooled", attention="scaled", width=WIDTH, heads=4, dropout=0.1)


@pytest.fixture
def dataset(tiny_world: Path) -> ClipDataset:
    store = FeatureStore([tiny_world / "clean_feat.h5"])
    return ClipDataset(read_clips(tiny_world / annotations.TARGET_TRAIN), store, frames=FRAMES)


def reward_model(seed: int = 0, shape: ModelConfig = SHAPE) -> PartialOrderModel:
    torch.manual_seed(seed)
    return PartialOrderModel(shape).eval()


def test_rewards_from_cached_vectors_are_those_of_the_full_model(
    dataset: ClipDataset, alone: Processes, tmp_path: Path
) -> None:
    frozen = open_frozen_reward(reward_model(), dataset, FEATURES, alone, "fp32", tmp_path)
    whole = FrozenReward(reward_model(), [len(clip.labels) for clip in dataset.clips], None)
    assert not hasattr(frozen.model, "encoder")
    sampler = EpochSampler(random_pairs(dataset.clips, 5, visits=2), batch_size=3, seed=0)
    for batch in training_loader(dataset, sampler, workers=0):
        order = torch.cat([batch.pairs, batch.pairs.flip(-1)], dim=-1)
        torch.testing.assert_close(frozen(batch, order), whole(batch, order), rtol=1e-5, atol=1e-5)


def test_vectors_are_computed_once_for_the_same_weights_and_features(
    dataset: ClipDataset, alone: Processes, tmp_path: Path
) -> None:
    def reads_features(
        dataset: ClipDataset,
        seed: int = 0,
        precision: Precision = "fp32",
        features: str = FEATURES,
        shape: ModelConfig = SHAPE,
    ) -> bool:
        before = dataset.store.bytes_read
        frozen = open_frozen_reward(reward_model(seed, shape), dataset, features, alone, precision, tmp_path)
        assert frozen.vectors is not None
        found.append(np.array(frozen.vectors))
        return dataset.store.bytes_read > before

    found: list[NDArray[np.float32]] = []
    assert reads_features(dataset)
    assert not reads_features(dataset)
    assert (found[0] == found[1]).all()
    assert reads_features(dataset, seed=1)
    assert reads_features(dataset, precision="bf16")
    assert reads_features(ClipDataset(dataset.clips, dataset.store, frames=FRAMES - 1))
    assert reads_features(dataset, features="of other content")
    # Models of the same tensors.
    assert reads_features(dataset, shape=SHAPE.model_copy(update={"heads": 2}))
    assert reads_features(dataset, shape=SHAPE.model_copy(update={"attention": "published"}))


def test_cached_vectors_that_are_damaged_are_computed_again_and_a_link_is_refused(
    dataset: ClipDataset, alone: Processes, tmp_path: Path
) -> None:
    def vectors() -> NDArray[np.float32]:
        frozen = open_frozen_reward(reward_model(), dataset, FEATURES, alone, "fp32", tmp_path / "cache")
        assert frozen.vectors is not None
        return np.array(frozen.vectors)

    wanted = vectors()
    (path,) = (tmp_path / "cache").iterdir()
    whole = path.read_bytes()
    changed = [whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :] for place in (0, 20, len(whole) // 2)]
    # Broken off, broken off by a copy that had reserved its size, of an earlier version, and with a bit changed.
    half, earlier = whole[: len(whole) // 2].ljust(len(whole), b"\0"), whole[:-32]
    for damaged in (b"", b"not numpy's", whole[:-4], half, earlier, *changed):
        path.write_bytes(damaged)
        assert (vectors() == wanted).all()
        assert path.read_bytes() == whole
    np.save(path, wanted[1:])
    assert (vectors() == wanted).all()
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="is a link"):
        vectors()


def test_a_folder_of_cached_vectors_that_is_a_link_is_refused_before_any_work(
    dataset: ClipDataset, alone: Processes, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "outside")
    (tmp_path / "file").write_bytes(b"")
    before = dataset.store.bytes_read
    for name, message in (("cache", "cache: is a link to .*outside"), ("file", "file: exists and is no folder")):
        with pytest.raises(UserError, match=message):
            open_frozen_reward(reward_model(), dataset, FEATURES, alone, "fp32", tmp_path / name)
    assert dataset.store.bytes_read == before
    assert not list((tmp_path / "outside").iterdir())


def test_nothing_is_cached_if_frames_are_drawn_again_each_time(
    dataset: ClipDataset, alone: Processes, tmp_path: Path
) -> None:
    drawn = ClipDataset(dataset.clips, dataset.store, frames=FRAMES, frame_order="random")
    frozen = open_frozen_reward(reward_model(), drawn, FEATURES, alone, "fp32", tmp_path)
    assert frozen.vectors is None
    assert not list(tmp_path.iterdir())
