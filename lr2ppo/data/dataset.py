"""The dataset and the batch type of all stages."""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lr2ppo.config.schema import DataConfig, ModelConfig
from lr2ppo.data.annotations import Clip, ClipFault, Need, read_valid_clips
from lr2ppo.data.features.kept import KeptClip, KeptFeatures
from lr2ppo.data.features.store import FeatureStore, find_feature_files
from lr2ppo.data.frames import evenly_spaced
from lr2ppo.data.validate import LEAVE_OUT, structure_faults
from lr2ppo.errors import raise_faults
from lr2ppo.ops.packing import Packing
from lr2ppo.ops.take import take
from lr2ppo.ops.trees import to_device

Positions = NDArray[np.int64]
# Features or their rows, the labels' numbers of tokens, spans of words, and frame tokens.
Found = tuple[NDArray[Any], Positions, Positions, NDArray[Any]]
# Numbers of labels and pairs in batches of steady shapes are multiples of it.
STEADY_STEP = 4


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
    """One clip's tensors: see `ClipBatch` for the fields.

    text [L, T, text width], zeros on padding; lengths [L] long, the tokens of each label.
    """

    id: str
    clip: int
    labels: Tensor
    text: Tensor
    lengths: Tensor
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
    text [B, L, T, text width]; text_mask [B, L, T]; packing, of its tokens, None without padding; label_mask [B, L];
    label_span [B, L, 2] long, start and stop of each label's words among its tokens; frames [B, F, image width];
    frame_mask [B, F]; grades [B, L] float, 0 for ungraded clips; listed [B, N] long and listed_mask [B, N], the list
    that stage 1 trains on, positions in `labels`; pairs [B, P, 2] long, positions in `labels` as shown; pair_mask [B,
    P]; real_pairs [N] long, the pairs among `B * P` that are no padding, None if all are used with the mask;
    first_is_better [B, P] bool, of annotated pairs; seeds [B] long, which drew the frames.
    """

    ids: tuple[str, ...]
    clips: Tensor
    labels: Tensor
    text: Tensor
    text_mask: Tensor
    packing: Packing | None
    label_mask: Tensor
    label_span: Tensor
    frames: Tensor
    frame_mask: Tensor
    grades: Tensor
    listed: Tensor
    listed_mask: Tensor
    pairs: Tensor
    pair_mask: Tensor
    real_pairs: Tensor | None
    first_is_better: Tensor
    seeds: Tensor
    # If the features are kept, `text` and `frames` are rows of their tables until the batch is on its device.
    kept: KeptFeatures | None = None

    def to(self, device: torch.device) -> Self:
        """Return the batch on a device, with its features; nothing waits for a GPU."""
        if self.kept is None:
            return to_device(self, device)
        if self.kept.on_gpu:
            moved = to_device(self, device)
            text, frames = self.kept.take(moved.text, moved.frames, device)
        else:
            text, frames = self.kept.take(self.text, self.frames, device)
            moved = to_device(replace(self, text=text, frames=frames), device)
        return replace(moved, text=text, frames=frames, kept=None)

    def __len__(self) -> int:
        return len(self.clips)

    def inputs(self) -> dict[str, Any]:
        """A model's inputs, by argument name."""
        names = ("text", "frames", "frame_mask", "label_span", "packing")
        # Without padding, no mask: a GPU would have to be asked whether there is some.
        mask = None if self.packing is None else self.text_mask
        return {name: getattr(self, name) for name in names} | {"text_mask": mask}

    def lists(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gather the labels' scores `[B, L]` into training lists: scores, grades and mask, `[B, N]` each.

        A list holds each distinct label once; if short lists are filled, some several times.
        """
        return take(scores, self.listed), take(self.grades, self.listed), self.listed_mask

    def of_pairs(self, values: Tensor) -> Tensor:
        """Return the values of the pairs that are no padding, or all if there is `counted`: [B, P] -> [N]."""
        # Not by the mask, for whose sum a GPU would have to be waited for.
        return values.flatten() if self.real_pairs is None else values.flatten().index_select(0, self.real_pairs)

    @property
    def counted(self) -> Tensor | None:
        """Which of the values from `of_pairs` are no padding, [N] bool; None if all."""
        return self.pair_mask.flatten() if self.real_pairs is None else None

    def pair_scores(self, scores: Tensor) -> Tensor:
        """Gather the labels' scores `[B, L]` into those of each pair's labels as shown: [B, P, 2]."""
        return take(scores, self.pairs.flatten(1)).view(self.pairs.shape)


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
        # Where the features are looked up instead of in the store, if they are kept in memory.
        self.kept: KeptFeatures | None = None

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
        grades = np.zeros(len(request.labels)) if clip.grades is None else clip.grades[request.labels]
        if self.kept is None:
            text, lengths, label_span, frames = self._read(clip.id, request)
        else:
            text, lengths, label_span, frames = self._look_up(self.kept.clips[clip.id], request)
        return ClipItem(
            id=clip.id,
            clip=request.clip,
            labels=torch.from_numpy(np.asarray(request.labels, dtype=np.int64)),
            text=torch.from_numpy(text),
            lengths=torch.from_numpy(lengths),
            label_span=torch.from_numpy(label_span),
            frames=torch.from_numpy(frames),
            grades=torch.from_numpy(grades.astype(np.float32)),
            listed=_optional(request.listed, (0,), torch.long),
            pairs=_optional(request.pairs, (0, 2), torch.long),
            first_is_better=_optional(request.first_is_better, (0,), torch.bool),
            seed=request.seed,
        )

    def _read(self, clip_id: str, request: ClipRequest) -> Found:
        """Read what is requested of a clip: its labels' tokens, their number, the spans of words, and frame tokens."""
        text, lengths = self.store.text(clip_id, request.labels.tolist())
        frames = self.store.frames(clip_id)
        if not len(frames):
            # A clip without frames gets one frame of zeros, the same for all such clips.
            frames = np.zeros((1, *frames.shape[1:]), dtype=np.float32)
        chosen = frames[self.choose_frames(len(frames), request.seed)]
        spans = self.store.label_spans(clip_id, request.labels, lengths)
        return _zero_padding(text, lengths), lengths, spans, chosen.reshape(-1, chosen.shape[-1])

    def _look_up(self, kept: KeptClip, request: ClipRequest) -> Found:
        """Return the same as `_read`, with rows of the kept tables in the place of features."""
        chosen = kept.frames[self.choose_frames(len(kept.frames), request.seed)]
        first, lengths = kept.first[request.labels], kept.lengths[request.labels]
        rows = first[:, None] + np.arange(lengths.max())
        return _zero_padding(rows, lengths), lengths, kept.spans[request.labels], chosen.flatten()

    def collate(self, items: Sequence[ClipItem]) -> ClipBatch:
        """Pad clips of this dataset into one batch."""
        longest = None
        if self.kept is not None and self.kept.on_gpu:
            longest = self.kept.longest, self.frames * self.store.tokens_per_frame
        return replace(collate(items, longest), kept=self.kept)

    def choose_frames(self, available: int, seed: int) -> Positions:
        """Positions of a clip's frames to use: evenly spaced in time order, or in random order."""
        return choose_frames(available, self.frames, self.frame_order, self.exact_frames, seed)


def _zero_padding(rows: NDArray[Any], lengths: Positions) -> NDArray[Any]:
    """Set what is after each label's tokens to zeros: rows [labels, tokens, ...], lengths [labels]."""
    if lengths.min() < rows.shape[1]:
        rows[np.arange(rows.shape[1]) >= lengths[:, None]] = 0
    return rows


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


def collate(items: Sequence[ClipItem], longest: tuple[int, int] | None = None) -> ClipBatch:
    """Pad clips into one batch.

    With `longest`, the most tokens of a label and the most frame tokens of a clip in any batch, batches have one of a
    few shapes, for a GPU that prepares its steps for each shape: then all pairs are used, with their mask.
    """
    steady = longest is not None
    most_tokens = max(item.text.shape[1] for item in items)
    most_frames = max(len(item.frames) for item in items)
    tokens, frames = longest or (most_tokens, most_frames)
    labels = _most([item.labels for item in items], steady)
    listed = _most([item.listed for item in items], steady)
    # Pairs without an annotated order are equally many in each batch.
    pairs = _most([item.pairs for item in items], steady and any(len(item.first_is_better) for item in items))
    text = items[0].text.new_zeros(len(items), labels, tokens, *items[0].text.shape[2:])
    for place, item in zip(text, items, strict=True):
        place[: item.text.shape[0], : item.text.shape[1]] = item.text
    text_mask = torch.arange(tokens) < _pad([item.lengths for item in items], labels).unsqueeze(-1)
    pair_mask = _mask([len(item.pairs) for item in items], pairs)
    return ClipBatch(
        ids=tuple(item.id for item in items),
        clips=torch.tensor([item.clip for item in items]),
        labels=_pad([item.labels for item in items], labels),
        text=text,
        text_mask=text_mask,
        packing=Packing.of(text_mask, steady),
        label_mask=_mask([len(item.text) for item in items], labels),
        label_span=_pad([item.label_span for item in items], labels),
        frames=_pad([item.frames for item in items], frames),
        frame_mask=_mask([len(item.frames) for item in items], frames),
        grades=_pad([item.grades for item in items], labels),
        listed=_pad([item.listed for item in items], listed),
        listed_mask=_mask([len(item.listed) for item in items], listed),
        pairs=_pad([item.pairs for item in items], pairs),
        pair_mask=pair_mask,
        real_pairs=None if steady else pair_mask.flatten().nonzero().squeeze(1),
        first_is_better=_pad([item.first_is_better for item in items], pairs),
        seeds=torch.tensor([item.seed for item in items]),
    )


def _most(rows: Sequence[Tensor], steady: bool) -> int:
    """The longest length, rounded up for a steady shape."""
    most = max(map(len, rows))
    return -(-most // STEADY_STEP) * STEADY_STEP if steady else most


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


def _mask(lengths: Sequence[int], size: int) -> Tensor:
    return torch.arange(size) < torch.tensor(lengths).unsqueeze(1)


def _pad(rows: Sequence[Tensor], size: int) -> Tensor:
    padded = rows[0].new_zeros(len(rows), size, *rows[0].shape[1:])
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded


def _optional(array: NDArray[np.generic] | None, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype) if array is None else torch.from_numpy(np.ascontiguousarray(array)).to(dtype)
