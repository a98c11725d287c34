"""What stage 3 stores between its steps: another number of processes restores all of it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lr2ppo.data import ClipDataset, FeatureStore, annotations, read_clips
from lr2ppo.data.dataset import ClipRequest, collate
from lr2ppo.data.samplers import EpochSampler, random_pairs, wrap_around
from lr2ppo.distributed.processes import Processes
from lr2ppo.policies.partial_order import PairRollout
from lr2ppo.stages.ppo import pack_rollouts, unpack_rollouts
from lr2ppo.training.checkpoint import ProcessState
from tests.conftest import FRAMES

PAIRS = 3
COUNT = st.integers(1, 4)


@pytest.fixture(scope="module")
def dataset(tiny_world: Path) -> ClipDataset:
    store = FeatureStore([tiny_world / "clean_feat.h5"])
    return ClipDataset(read_clips(tiny_world / annotations.TARGET_TRAIN), store, frames=FRAMES)


def roll_out(dataset: ClipDataset, requests: list[ClipRequest]) -> PairRollout:
    """A rollout whose outcomes tell the clip."""
    batch = collate([dataset[request] for request in requests])
    values = batch.clips.unsqueeze(1).expand(-1, PAIRS).float()
    scores = values.unsqueeze(-1).expand(-1, -1, 2)
    return PairRollout(batch, scores, scores.long(), values, values + 0.5)


def restore(dataset: ClipDataset, states: list[ProcessState], world_size: int) -> list[list[PairRollout]]:
    """The rollouts of each process."""
    processes = [Processes(rank, world_size, torch.device("cpu")) for rank in range(world_size)]
    return [unpack_rollouts(PairRollout, states, dataset, own)[0] for own in processes]


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(clips=st.integers(1, 9), share=COUNT, before=COUNT, after=COUNT)
def test_all_that_was_stored_is_restored_in_equal_shares(
    dataset: ClipDataset, clips: int, share: int, before: int, after: int
) -> None:
    """Batches of `share` clips in each of `before` processes; the last ones are smaller."""
    draw = random_pairs(dataset.clips[:clips], PAIRS, visits=1)
    samplers = [EpochSampler(draw, batch_size=share, seed=0, rank=rank, world_size=before) for rank in range(before)]
    stored = [[roll_out(dataset, requests) for requests in sampler] for sampler in samplers]
    restored = restore(dataset, [pack_rollouts(own, 0) for own in stored], after)
    for number in range(len(stored[0])):
        wanted = [clip for own in stored for clip in own[number].batch.clips.tolist()]
        shares = [own[number].batch.clips.tolist() for own in restored]
        assert [clip for own in shares for clip in own] == wrap_around(wanted, after)
        assert len(set(map(len, shares))) == 1
        for own in restored:
            rows = own[number]
            assert torch.equal(rows.reward, rows.batch.clips.unsqueeze(1).expand(-1, PAIRS).float())
            assert torch.equal(rows.scores, rows.reward.unsqueeze(-1).expand(-1, -1, 2))
        if before == after:
            for first, second in zip((own[number] for own in stored), (own[number] for own in restored), strict=True):
                for name in ("clips", "labels", "pairs", "text", "frames", "seeds"):
                    assert torch.equal(getattr(first.batch, name), getattr(second.batch, name))


@given(st.lists(st.integers(0, 99), min_size=1), st.integers(1, 9))
def test_a_few_items_are_wrapped_around(items: list[int], world_size: int) -> None:
    wrapped = wrap_around(items, world_size)
    assert wrapped[: len(items)] == items
    assert len(wrapped) - len(items) < world_size
    assert len(wrapped) % world_size == 0
    assert wrapped == np.resize(items, len(wrapped)).tolist()
