"""The frozen reward model of stage 3; it encodes every label only once."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from lr2ppo.config.schema import PPOConfig, Precision
from lr2ppo.data.dataset import ClipBatch, ClipDataset
from lr2ppo.data.samplers import evaluation_loader, whole_clips
from lr2ppo.distributed.processes import Processes, autocast, resolve_precision
from lr2ppo.errors import UserError
from lr2ppo.files import check_folder_inside, check_inside, write_atomically
from lr2ppo.models import LabelEncoder, PartialOrderModel
from lr2ppo.ops.linear import use_fast_linear
from lr2ppo.tensors import fingerprint
from lr2ppo.training.run import TrainingRun

Vectors = NDArray[np.float32]
CLIPS_AT_ONCE = 4
# Bytes at the end of a file of cached vectors.
CHECKSUM = hashlib.sha256().digest_size


class FrozenReward:
    """Rewards of orders, computed by the full model or from precomputed vectors of all labels."""

    def __init__(self, reward_model: PartialOrderModel, labels: Sequence[int], vectors: Vectors | None) -> None:
        """`labels` are the label counts of the clips; with `vectors [all labels, D]`, by clip, the encoder is freed."""
        self.model = reward_model.eval().requires_grad_(False)
        device = next(self.model.parameters()).device
        # On a CPU, those in a file stay there.
        self.vectors = None if vectors is None else torch.from_numpy(vectors).to(device)
        self.first_row = torch.tensor([0, *labels], device=device).cumsum(0)
        if vectors is not None:
            del self.model.encoder

    @torch.no_grad()
    def __call__(self, batch: ClipBatch, order: Tensor) -> Tensor:
        """Return the rewards `[B, N]` of orders `[B, N, S]` of a batch's labels."""
        return self.model.score_orders(self.encode(batch), order)

    @torch.no_grad()
    def encode(self, batch: ClipBatch) -> Tensor:
        """Return the vectors `[B, L, D]` of a batch's labels."""
        if self.vectors is None:
            encoded: Tensor = self.model.encoder(**batch.inputs())
            return encoded
        return self.vectors[self.first_row[batch.clips].unsqueeze(1) + batch.labels]

    def margin(self, batch: ClipBatch, pairs: Tensor) -> Tensor:
        """Return the reward of each pair's order as given minus that of the other order: [B, P, 2] -> [B, P].

        It is the mean over both ways to show the pair.
        """
        swapped = pairs.flip(-1)
        orders = [(pairs, pairs), (swapped, pairs), (pairs, swapped), (swapped, swapped)]
        rewards = self(batch, torch.cat([torch.cat(order, -1) for order in orders], 1)).unflatten(1, (4, -1))
        margin: Tensor = (rewards[:, :2] - rewards[:, 2:]).mean(1)
        return margin


def check_reward_model(run: TrainingRun[PPOConfig], reward: object) -> PartialOrderModel:
    """Return the reward model of a run of stage 3; raises `UserError` if `reward` is none."""
    if not isinstance(reward, PartialOrderModel):
        raise UserError(
            f"policy.name: found {run.config.policy.name}, whose rewards are those of a reward model; for a function, "
            "or for the clips' grades, choose plackett_luce, grpo or reinforce"
        )
    return reward


def open_run_reward(run: TrainingRun[PPOConfig], reward: object) -> FrozenReward:
    """Open the frozen reward of a run of stage 3; raises `UserError` if `reward` is no reward model."""
    reward_model = check_reward_model(run, reward)
    config, features = run.config, run.fingerprints["features"]
    return open_frozen_reward(
        reward_model, run.clips, features, run.processes, config.compute.precision, config.logs / "cache"
    )


def open_frozen_reward(
    reward_model: PartialOrderModel,
    dataset: ClipDataset,
    features: str,
    processes: Processes,
    precision: Precision,
    cache: Path,
) -> FrozenReward:
    """Open the frozen reward of a dataset; its label vectors are read from `cache` or computed by all processes.

    `features` is a fingerprint of the content of the clips' features: the same vectors are read only for the same.
    Frames in random order give different vectors each time, so nothing is cached then. Raises `UserError` if `cache`
    is a link or no folder.
    """
    use_fast_linear(reward_model).to(processes.device).eval()
    labels = [len(clip.labels) for clip in dataset.clips]
    if dataset.frame_order == "random":
        return FrozenReward(reward_model, labels, None)
    key = _key(reward_model.encoder, dataset, features, resolve_precision(precision, processes.device))
    path = cache / f"vectors-{key}.npy"
    # Before the vectors are computed, which takes long.
    check_folder_inside(cache)
    check_inside(path)
    known = _read(path, sum(labels))
    # All processes must take the same branch, even if one sees another file system.
    if all(processes.gather(known is not None)):
        return FrozenReward(reward_model, labels, known)
    vectors = encode_labels(reward_model.encoder, dataset, processes, precision)
    if processes.is_main:
        write_atomically(path, lambda partial: _save(partial, vectors))
    return FrozenReward(reward_model, labels, vectors)


@torch.no_grad()
def encode_labels(encoder: LabelEncoder, dataset: ClipDataset, processes: Processes, precision: Precision) -> Vectors:
    """Encode every label of every clip: `[labels of all clips, D]`, on every process."""
    requests = whole_clips(dataset.clips)
    loader = evaluation_loader(
        dataset, requests, batch_size=CLIPS_AT_ONCE, rank=processes.rank, world_size=processes.world_size
    )
    mine: dict[int, Vectors] = {}
    progress = tqdm(
        loader, desc="encoding labels for the reward model", leave=False, disable=None if processes.is_main else True
    )
    with autocast(precision, processes.device):
        for batch in progress:
            batch = batch.to(processes.device)
            vectors = encoder(**batch.inputs())
            for clip, row, mask in zip(batch.clips.tolist(), vectors, batch.label_mask, strict=True):
                mine[clip] = row[mask].float().cpu().numpy()
    everyone = {clip: rows for share in processes.gather(mine) for clip, rows in share.items()}
    return np.concatenate([everyone[clip] for clip in range(len(dataset))])


def _key(encoder: LabelEncoder, dataset: ClipDataset, features: str, precision: str) -> str:
    """A hash of all that the vectors depend on: model, features, clips, frames and precision."""
    # Tensors do not show the number of heads, for example.
    model = [fingerprint(encoder.state_dict()), encoder.config.model_dump(mode="json")]
    clips = [(clip.id, len(clip.labels)) for clip in dataset.clips]
    facts = [model, features, clips, dataset.frames, dataset.exact_frames, precision]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def _read(path: Path, rows: int) -> Vectors | None:
    """Read cached vectors; None if there are none, or they are damaged."""
    try:
        content = np.memmap(path, mode="r")
        # Before its header is read, whose damage raises many types.
        if hashlib.sha256(content[:-CHECKSUM].data).digest() != content[-CHECKSUM:].tobytes():
            return None
        # Writable, as torch wants it; the file stays as it is.
        found = np.load(path, mmap_mode="c")
    except (OSError, ValueError, EOFError):
        return None
    fits = isinstance(found, np.ndarray) and found.dtype == np.float32 and found.ndim == 2 and len(found) == rows
    return found if fits else None


def _save(path: Path, vectors: Vectors) -> None:
    """Write vectors in numpy's format, which ignores what follows them: the SHA-256 of all before."""
    with path.open("w+b") as file:
        np.save(file, vectors)
        file.seek(0)
        file.write(hashlib.file_digest(file, "sha256").digest())
