"""The feature store: HDF5 files with one group a clip, `text_emb [labels, T, D]` and `img_emb [1, frames, D]`."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import h5py
import numpy as np
from numpy.typing import NDArray

from lr2ppo.errors import UserError

Array = NDArray[np.float32]


@dataclass(frozen=True)
class ClipShape:
    """How many labels, text tokens a label and frames a clip's features have, and their widths."""

    labels: int
    tokens: int
    frames: int
    text_width: int
    image_width: int


class FeatureStore:
    """Features of clips from one or several files, opened on first use in each process.

    Files are read row by row: asking for some labels of a clip reads no others.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises `UserError` where a file is missing, is not HDF5 or holds no clip."""
        self.paths = list(paths)
        self._handles: dict[int, list[h5py.File]] = {}
        self._shard_of: dict[str, int] = {}
        for path in self.paths:
            if not path.is_file():
                raise UserError(
                    f"{path}: no such feature file; make it with: "
                    f"python -m lr2ppo.encoders.extract --data {path.parent} --text ENCODER --image ENCODER"
                )
        example = self._any_group()
        self.text_width = int(example["text_emb"].shape[-1])
        self.image_width = int(example["img_emb"].shape[-1])
        per_frame = {int(file.attrs.get("tokens_per_frame", 1)) for file in self._files()}
        if len(per_frame) > 1:
            raise UserError(
                f"{', '.join(map(str, self.paths))}: found {sorted(per_frame)} tokens a frame, wanted the same in all "
                "files of a store; extract them with the same --frame-tokens"
            )
        self.tokens_per_frame = per_frame.pop()

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_handles": {}}

    def __contains__(self, clip_id: str) -> bool:
        return self._find(clip_id) is not None

    def shape(self, clip_id: str) -> "ClipShape":
        """What is stored of one clip, found without reading its features; raises ValueError where that is malformed."""
        group = self._group(clip_id)
        text, image = (group[name].shape if name in group else None for name in ("text_emb", "img_emb"))
        if text is None or image is None or len(text) != 3 or len(image) != 3 or image[0] != 1:
            raise ValueError(
                f"found text_emb {text} and img_emb {image}, wanted [labels, tokens, width] and [1, frames, width]"
            )
        if "text_len" in group and group["text_len"].shape != text[:1]:
            raise ValueError(
                f"found text_len {group['text_len'].shape}, wanted one number for each of {text[0]} labels"
            )
        return ClipShape(text[0], text[1], image[1] // self.tokens_per_frame, text[2], image[2])

    def text(self, clip_id: str, labels: Sequence[int]) -> tuple[Array, NDArray[np.int64]]:
        """Token features of some labels `[len(labels), T, D]`, zero behind each label's length, and the lengths."""
        group = self._group(clip_id)
        dataset = group["text_emb"]
        if "text_len" in group:
            lengths = group["text_len"][()].astype(np.int64)[labels]
        else:
            lengths = np.full(len(labels), dataset.shape[1], dtype=np.int64)
        tokens = int(lengths.max(initial=0))
        if list(labels) == list(range(dataset.shape[0])):
            rows = dataset[:, :tokens]
        else:
            rows = np.stack([dataset[label, :tokens] for label in labels])
        return rows.astype(np.float32, copy=False), lengths

    def frames(self, clip_id: str) -> Array:
        """Features of all of a clip's frames `[frames, tokens_per_frame, D]`."""
        rows = self._group(clip_id)["img_emb"][()].astype(np.float32, copy=False)
        frames: Array = rows.reshape(-1, self.tokens_per_frame, rows.shape[-1])
        return frames

    def _files(self) -> list[h5py.File]:
        process = os.getpid()
        if process not in self._handles:
            self._handles = {process: [_open(path) for path in self.paths]}
        return self._handles[process]

    def _find(self, clip_id: str) -> int | None:
        if clip_id not in self._shard_of:
            holders = (shard for shard, file in enumerate(self._files()) if f"{clip_id}/img_emb" in file)
            shard = next(holders, None)
            if shard is None:
                return None
            self._shard_of[clip_id] = shard
        return self._shard_of[clip_id]

    def _group(self, clip_id: str) -> h5py.Group:
        shard = self._find(clip_id)
        if shard is None:
            raise KeyError(f"clip {clip_id} has no features in {', '.join(map(str, self.paths))}")
        return self._files()[shard][clip_id]

    def _any_group(self) -> h5py.Group:
        for file in self._files():
            found: list[h5py.Group] = []
            # Clip ids may hold slashes, which nest groups: descend to the first group that holds features.
            file.visititems(lambda _, item, found=found: _collect_clip(item, found))
            if found:
                return found[0]
        raise UserError(f"{', '.join(map(str, self.paths))}: found no clip with text_emb and img_emb")


class FeatureWriter:
    """Writes a feature file clip by clip; a file begun earlier with the same `facts` is continued."""

    def __init__(self, path: Path, facts: Mapping[str, str | int]) -> None:
        """`facts` say what made the features (encoders, tokens a frame); raises `UserError` where a file's differ."""
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = h5py.File(path, "a")
        except OSError as error:
            raise UserError(f"{path}: cannot be written or continued: {error}; remove it to start anew") from None
        found = {key: self._file.attrs[key] for key in facts if key in self._file.attrs}
        if len(self._file) and found != dict(facts):
            self._file.close()
            raise UserError(
                f"{path}: holds features made with {found}, now asked for {dict(facts)}; "
                "remove the file or give another --out"
            )
        self._file.attrs.update(facts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def __contains__(self, clip_id: str) -> bool:
        return f"{clip_id}/img_emb" in self._file

    def write(self, clip_id: str, text: Sequence[Array], frames: Array) -> None:
        """Write one clip: `text`, an array `[tokens, D]` a label; `frames [rows, D]`."""
        lengths = np.array([len(tokens) for tokens in text], dtype=np.int32)
        padded = np.zeros((len(text), lengths.max(), text[0].shape[-1]), dtype=np.float32)
        for row, tokens in zip(padded, text, strict=True):
            row[: len(tokens)] = tokens
        # A group may hold other clips too: the id of one can be a folder in the id of another.
        group = self._file.require_group(clip_id)
        for part in ("text_len", "text_emb", "img_emb"):
            if part in group:
                del group[part]
        group["text_len"] = lengths
        group["text_emb"] = padded
        # Written last: a clip counts as done once it is there.
        group["img_emb"] = frames[None].astype(np.float32, copy=False)
        self._file.flush()


def find_feature_files(root: Path, names: Sequence[str]) -> list[Path]:
    """The feature files of a folder, whose names may be patterns; raises `UserError` where nothing matches."""
    paths: list[Path] = []
    for name in names:
        paths += sorted(root.glob(name)) if any(c in name for c in "*?[") else [root / name]
    if not paths:
        raise UserError(f"data.features: nothing in {root} matches {', '.join(names)}")
    return paths


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: is not a whole HDF5 file: {error}") from None


def _collect_clip(item: h5py.Group | h5py.Dataset, found: list[h5py.Group]) -> bool | None:
    """For `visititems`: keep the first group that holds features, then stop."""
    if isinstance(item, h5py.Group) and "text_emb" in item and "img_emb" in item:
        found.append(item)
        return True
    return None
