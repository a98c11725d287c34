"""The frozen reward model: precomputed vectors give the full model's rewards, and are cached for the next run."""

import os
from pathlib import Path

import pytest
import torch

from lr2ppo.config.schema import ModelConfig
from lr2ppo.data import ClipDataset, FeatureStore, annotations, read_clips
from lr2ppo.data.samplers import EpochSampler, random_pairs, training_loader
from lr2ppo.distributed.processes import Processes
from lr2ppo.models import PartialOrderModel
from lr2ppo.stages import frozen_reward
from lr2ppo.stages.frozen_reward import FrozenReward, open_frozen_reward
from tests.conftest import FRAMES, WIDTH


@pytest.fixture
def dataset(tiny_world: Path) -> ClipDataset:
    store = FeatureStore([tiny_world / "clean_feat.h5"])
    return ClipDataset(read_clips(tiny_world / annotations.TARGET_TRAIN), store, frames=FRAMES)


def reward_model(seed: int = 0) -> PartialOrderModel:
    torch.manual_seed(seed)
    shape = ModelConfig(head="pooled", attention="scaled", width=WIDTH, heads=4, dropout=0.1)
    return PartialOrderModel(shape).eval()


def test_rewards_from_cached_vectors_are_those_of_the_full_model(
    dataset: ClipDataset, alone: Processes, tmp_path: Path
) -> None:
    frozen = open_frozen_reward(reward_model(), dataset, alone, "fp32", tmp_path)
    whole = FrozenReward(reward_model(), [len(clip.labels) for clip in dataset.clips], None)
    assert not hasattr(frozen.model, "encoder")
    sampler = EpochSampler(random_pairs(dataset.clips, 5, visits=2), batch_size=3, seed=0)
    for batch in training_loader(dataset, sampler, workers=0):
        order = torch.cat([batch.pairs, batch.pairs.flip(-1)], dim=-1)
        torch.testing.assert_close(frozen(batch, order), whole(batch, order), rtol=1e-5, atol=1e-5)


def test_vectors_are_computed_once_for_the_same_weights_and_features(
    dataset: ClipDataset, alone: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_frozen_reward(reward_model(), dataset, alone, "fp32", tmp_path)

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(frozen_reward, "encode_labels", refuse)
    again = open_frozen_reward(reward_model(), dataset, alone, "fp32", tmp_path)
    assert first.vectors is not None
    assert again.vectors is not None
    assert (first.vectors == again.vectors).all()
    with pytest.raises(AssertionError, match="computed again"):
        open_frozen_reward(reward_model(seed=1), dataset, alone, "fp32", tmp_path)
    with pytest.raises(AssertionError, match="computed again"):
        open_frozen_reward(reward_model(), dataset, alone, "bf16", tmp_path)
    fewer = ClipDataset(dataset.clips, dataset.store, frames=FRAMES - 1)
    with pytest.raises(AssertionError, match="computed again"):
        open_frozen_reward(reward_model(), fewer, alone, "fp32", tmp_path)
    path = dataset.store.paths[0]
    stat = path.stat()
    try:
        os.utime(path, ns=(1, 1))
        with pytest.raises(AssertionError, match="computed again"):
            open_frozen_reward(reward_model(), dataset, alone, "fp32", tmp_path)
    finally:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_nothing_is_cached_if_frames_are_drawn_again_each_time(
    dataset: ClipDataset, alone: Processes, tmp_path: Path
) -> None:
    drawn = ClipDataset(dataset.clips, dataset.store, frames=FRAMES, frame_order="random")
    frozen = open_frozen_reward(reward_model(), drawn, alone, "fp32", tmp_path)
    assert frozen.vectors is None
    assert not list(tmp_path.iterdir())
