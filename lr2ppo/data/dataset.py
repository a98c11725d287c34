"""The dataset and the batch type of all stages."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from lr2ppo.config.schema import DataConfig, ModelConfig
from lr2ppo.data.annotations import Clip, ClipFault, Need, read_valid_clips
from lr2ppo.data.features.store import FeatureStore, find_feature_files
from lr2ppo.data.frames import evenly_spaced
from lr2ppo.data.validate import LEAVE_OUT, structure_faults
from lr2ppo.errors import raise_faults

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class ClipRequest:
    """What to read of one clip; drawn by a sampler, so that data workers draw nothing.

    `labels [L]` are the distinct label positions to read; `listed [N]`, `pairs [P, 2]` index into `labels`;
    `first_is_better [P]` is the order of annotated pairs; `seed` draws the frames if their order is random.
    """

    clip: int
    labels: Positions
    listed: Positions | None = None
    pairs: Positions | None = None
    first_is_better: NDArray[np.bool_] | None = None
    seed: int = 0


@dataclass(frozen=True)
class ClipItem:
    """One clip's tensors: see `ClipBatch` for the fields."""

    id: str
    clip: int
    labels: Tensor
    text: list[Tensor]
    label_span: Tensor
    frames: Tensor
    grades: Tensor
    listed: Tensor
    pairs: Tensor
    first_is_better: Tensor
    seed: int


@dataclass(frozen=True)
class ClipBatch:
    """Padded clips; masks are False on padding.

    ids: the clips' ids; clips [B] long, positions in the dataset; labels [B, L] long, positions in the clip's list;
    text [B, L, T, text width]; text_mask [B, L, T]; label_mask [B, L]; label_span [B, L, 2] long, start and stop of
    each label's words among its tokens; frames [B, F, image width]; frame_mask [B, F]; grades [B, L] float, 0 for
    ungraded clips; listed [B, N] long and listed_mask [B, N], the list that stage 1 trains on, positions in `labels`;
    pairs [B, P, 2] long, positions in `labels` as shown; pair_mask [B, P]; first_is_better [B, P] bool, of annotated
    pairs; seeds [B] long, which drew the frames.
    """

    ids: tuple[str, ...]
    clips: Tensor
    labels: Tensor
    text: Tensor
    text_mask: Tensor
    label_mask: Tensor
    label_span: Tensor
    frames: Tensor
    frame_mask: Tensor
    grades: Tensor
    listed: Tensor
    listed_mask: Tensor
    pairs: Tensor
    pair_mask: Tensor
    first_is_better: Tensor
    seeds: Tensor

    def to(self, device: torch.device) -> Self:
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "ids"}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})

    def __len__(self) -> int:
        return len(self.clips)

    def inputs(self) -> dict[str, Tensor]:
        """A model's inputs, by argument name."""
        names = ("text", "frames", "text_mask", "frame_mask", "label_span")
        return {name: getattr(self, name) for name in names}

    def lists(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gather the labels' scores `[B, L]` into training lists: scores, grades and mask, `[B, N]` each.

        A list holds each distinct label once; if short lists are filled, some several times.
        """
        return scores.gather(1, self.listed), self.grades.gather(1, self.listed), self.listed_mask

    def pair_scores(self, scores: Tensor) -> Tensor:
        """Gather the labels' scores `[B, L]` into those of each pair's labels as shown: [B, P, 2]."""
        return scores.gather(1, self.pairs.flatten(1)).view(self.pairs.shape)


class ClipDataset(Dataset[ClipItem]):
    """Clips with their features, indexed by `ClipRequest`."""

    def __init__(
        self,
        clips: Sequence[Clip],
        store: FeatureStore,
        *,
        frames: int,
        frame_order: Literal["even", "random"] = "even",
        exact_frames: bool = False,
        left_out: Sequence[str] = (),
    ) -> None:
        """`frames` is the maximum per clip; with `exact_frames`, shorter clips repeat theirs to reach it.

        `left_out` names the clips of the annotation file that were left out for their faults.
        """
        self.clips = clips
        self.left_out = list(left_out)
        self.store = store
        self.frames = frames
        self.frame_order = frame_order
        self.exact_frames = exact_frames

    def without(self, faults: Iterable[ClipFault]) -> "ClipDataset":
        """Return the dataset without the faulty clips, which are added to `left_out`."""
        faulty = {fault.clip for fault in faults}
        return ClipDataset(
            [clip for clip in self.clips if clip.id not in faulty],
            self.store,
            frames=self.frames,
            frame_order=self.frame_order,
            exact_frames=self.exact_frames,
            left_out=[*self.left_out, *(clip.id for clip in self.clips if clip.id in faulty)],
        )

    def joined(self, other: "ClipDataset") -> "ClipDataset":
        """Return a dataset of these clips, followed by those of another one with the same features and frames."""
        return ClipDataset(
            [*self.clips, *other.clips],
            self.store,
            frames=self.frames,
            frame_order=self.frame_order,
            exact_frames=self.exact_frames,
            left_out=[*self.left_out, *other.left_out],
        )

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, request: ClipRequest) -> ClipItem:
        clip = self.clips[request.clip]
        text, lengths = self.store.text(clip.id, request.labels.tolist())
        grades = np.zeros(len(request.labels)) if clip.grades is None else clip.grades[request.labels]
        frames = self.store.frames(clip.id)
        if not len(frames):
            # A clip without frames gets one frame of zeros, the same for all such clips.
            frames = np.zeros((1, *frames.shape[1:]), dtype=np.float32)
        chosen = frames[self.choose_frames(len(frames), request.seed)]
        return ClipItem(
            id=clip.id,
            clip=request.clip,
            labels=torch.from_numpy(np.asarray(request.labels, dtype=np.int64)),
            text=[torch.from_numpy(row[:length]) for row, length in zip(text, lengths, strict=True)],
            label_span=torch.from_numpy(self.store.label_spans(clip.id, request.labels, lengths)),
            frames=torch.from_numpy(chosen.reshape(-1, chosen.shape[-1])),
            grades=torch.from_numpy(grades.astype(np.float32)),
            listed=_optional(request.listed, (0,), torch.long),
            pairs=_optional(request.pairs, (0, 2), torch.long),
            first_is_better=_optional(request.first_is_better, (0,), torch.bool),
            seed=request.seed,
        )

    def choose_frames(self, available: int, seed: int) -> Positions:
        """Positions of a clip's frames to use: evenly spaced in time order, or in random order."""
        return choose_frames(available, self.frames, self.frame_order, self.exact_frames, seed)


def frames_seed(clip_id: str) -> int:
    """The seed that draws a clip's frames outside of training: the same whichever clips are beside it."""
    return zlib.crc32(clip_id.encode(errors="replace"))


def choose_frames(
    available: int, max_frames: int, order: Literal["even", "random"], exact: bool = False, seed: int = 0
) -> Positions:
    """Positions of a clip's frames to use: evenly spaced in time order, or in random order; `exact` repeats some."""
    wanted = max_frames if exact else min(max_frames, available)
    if order == "even":
        return evenly_spaced(available, wanted)
    return np.resize(np.random.default_rng(seed).permutation(available), wanted)


def collate(items: Sequence[ClipItem]) -> ClipBatch:
    """Pad clips into one batch."""
    labels = max(len(item.text) for item in items)
    tokens = max((len(row) for item in items for row in item.text), default=0)
    width = items[0].text[0].shape[-1]
    text = torch.zeros(len(items), labels, tokens, width)
    text_mask = torch.zeros(len(items), labels, tokens, dtype=torch.bool)
    for position, item in enumerate(items):
        for label, row in enumerate(item.text):
            text[position, label, : len(row)] = row
            text_mask[position, label, : len(row)] = True
    return ClipBatch(
        ids=tuple(item.id for item in items),
        clips=torch.tensor([item.clip for item in items]),
        labels=pad_sequence([item.labels for item in items], batch_first=True),
        text=text,
        text_mask=text_mask,
        label_mask=_mask([len(item.text) for item in items]),
        label_span=pad_sequence([item.label_span for item in items], batch_first=True),
        frames=pad_sequence([item.frames for item in items], batch_first=True),
        frame_mask=_mask([len(item.frames) for item in items]),
        grades=pad_sequence([item.grades for item in items], batch_first=True),
        listed=pad_sequence([item.listed for item in items], batch_first=True),
        listed_mask=_mask([len(item.listed) for item in items]),
        pairs=pad_sequence([item.pairs for item in items], batch_first=True),
        pair_mask=_mask([len(item.pairs) for item in items]),
        first_is_better=pad_sequence([item.first_is_better for item in items], batch_first=True),
        seeds=torch.tensor([item.seed for item in items]),
    )


def open_store(data: DataConfig) -> FeatureStore:
    """Open the feature files of `data.features` as one store."""
    return FeatureStore(find_feature_files(data.root, data.features))


def open_dataset(data: DataConfig, file: str, need: Need, store: FeatureStore, model: ModelConfig) -> ClipDataset:
    """Open one annotation file with its features, for a model; with `data.strict` false, faulty clips are left out.

    Raises `UserError` naming the clips with faulty entries, without features, or with features that do not fit their
    labels or the model; with `data.strict` false only if no clip remains.
    """
    path = data.root / file
    clips, faults = read_valid_clips(path, need)
    flatten = model.head == "flatten"
    unfit = structure_faults(clips, store, model.text_tokens if flatten else None)
    dataset = ClipDataset(
        clips,
        store,
        frames=data.frames,
        frame_order=data.frame_order,
        exact_frames=flatten,
        left_out=list(dict.fromkeys(fault.clip for fault in faults)),
    ).without(unfit)
    if data.strict or not len(dataset):
        advice = ["fix or remove them"] * bool(faults)
        advice += [f"extract its features again into {', '.join(data.features)}"] * bool(unfit)
        advice += [LEAVE_OUT if data.strict else "no valid clip remains"]
        raise_faults(path, [str(fault) for fault in [*faults, *unfit]], ", ".join(advice))
    return dataset


def _mask(lengths: Sequence[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths).unsqueeze(1)


def _optional(array: NDArray[np.generic] | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype) if array is None else torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
