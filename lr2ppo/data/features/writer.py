"""Write feature files clip by clip, so that a stopped extraction can resume."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from lr2ppo.data.features.encoders import ADDED, without_name
from lr2ppo.data.features.hdf5 import HDF5_ERRORS, damaged, list_clips, open_features
from lr2ppo.data.features.layout import SOURCES, Sources, read_attribute, read_sources
from lr2ppo.data.features.names import CLIP_PARTS, id_fault
from lr2ppo.data.features.store import Array
from lr2ppo.errors import UserError, path_errors_as_user_errors
from lr2ppo.files import check_name, check_one_name

Metadata = Mapping[str, str | int]
StoredType = Literal["float32", "float16", "bfloat16"]
LARGEST = {name: torch.finfo(getattr(torch, name)).max for name in ("float32", "float16", "bfloat16")}


class FeatureWriter:
    """Write a feature file clip by clip; an existing file with the same `metadata` and `dtype` is continued.

    Encoders that were only renamed are the same: of `name@fingerprint`, the fingerprint is compared.
    """

    def __init__(
        self, path: Path, metadata: Metadata, dtype: StoredType = "float32", notes: Metadata = MappingProxyType({})
    ) -> None:
        """`metadata` is what made the features (encoders, tokens a frame).

        `notes` are stored too, but may change when a file is continued, as paths do. Raises `UserError` if an existing
        file cannot be continued, has other metadata or leads out of itself; it is then left as it was.
        """
        self._path, self._dtype = path, dtype
        with path_errors_as_user_errors():
            # HDF5 would take a null character for the end of the name.
            check_name(path)
            path.parent.mkdir(parents=True, exist_ok=True)
        if os.path.lexists(path):
            read_clip_names(path, metadata, dtype)
            check_one_name(path, path.stat())
        with _errors_named(self._path, "be written or continued", "remove it to start again, or give another path"):
            self._file = h5py.File(path, "a")
            # What an older file does not say about its clips must not be said by those added now.
            said = {**metadata, "dtype": dtype} if len(self._file) == 0 else {}
            for name, value in {**said, **notes}.items():
                # Fixed length: a damaged variable-length string can crash the process that reads it.
                self._file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def write(
        self,
        clip_id: str,
        text: Sequence[Array],
        frames: Array,
        label_span: Sequence[tuple[int, int]] | None = None,
        sources: Sources | None = None,
    ) -> None:
        """Write one clip: `text`, an array `[tokens, D]` per label; `frames [rows, D]`, no rows if it has no frames.

        `label_span` is the start and stop of each label's words among its tokens (None: after the first token),
        `sources` what the features were made from, if known.
        Raises `UserError`, before anything is written, if the id cannot be used or a feature is too large for the
        file's dtype; also if the file cannot be written.
        """
        if fault := id_fault(clip_id):
            raise UserError(f"{self._path}: id of a clip: {fault}; give the clip another")
        lengths = np.array([len(tokens) for tokens in text], dtype=np.int32)
        padded = np.zeros((len(text), lengths.max(), text[0].shape[-1]), dtype=np.float32)
        for row, tokens in zip(padded, text, strict=True):
            row[: len(tokens)] = tokens
        stored = {"text_len": lengths, "text_emb": self._as_stored(clip_id, padded)}
        if label_span is not None:
            stored["label_span"] = np.array(label_span, dtype=np.int32)
        # Written last: it marks a clip as complete.
        stored["img_emb"] = self._as_stored(clip_id, frames[None])
        # A group may hold other clips too: one clip's id can be a path prefix of another's.
        with _errors_named(self._path, f"hold clip {clip_id}", "free space on its disk, or remove it to start again"):
            group = self._file.require_group(clip_id)
            for part in CLIP_PARTS:
                if part in group:
                    del group[part]
            for name in SOURCES:
                group.attrs.pop(name, None)
            if sources is not None:
                for name, value in zip(SOURCES, astuple(sources), strict=True):
                    if value is not None:
                        group.attrs[name] = np.bytes_(value.encode())
            for part, values in stored.items():
                group[part] = values
            self._file.flush()

    def _as_stored(self, clip_id: str, values: Array) -> NDArray[Any]:
        largest = LARGEST[self._dtype]
        too_large = values[(np.abs(values) > largest) & np.isfinite(values)]
        if len(too_large):
            wider = "bfloat16" if self._dtype == "float16" else "float32"
            raise UserError(
                f"{self._path}: clip {clip_id}: found a feature of {too_large[0]:g}, {self._dtype} holds none beyond "
                f"{largest:g}; extract with --dtype {wider} into another --out, or remove the file first"
            )
        if self._dtype == "bfloat16":
            # HDF5 has no bfloat16: its bits are stored as integers.
            return torch.tensor(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return values.astype(self._dtype, copy=False)


def read_clip_names(path: Path, metadata: Metadata, dtype: StoredType) -> set[str]:
    """The ids of the clips in a feature file.

    Raises `UserError` if the file cannot be read, holds clips with other metadata or of another dtype, or leads out of
    itself.
    """
    with open_features(path) as file:
        _check_metadata(file, path, metadata, dtype)
        return set(list_clips(file, path, check_arrays=True))


def read_clip_sources(path: Path, metadata: Metadata, dtype: StoredType) -> dict[str, Sources | None]:
    """What the features of each clip in a file were made from, by id; raises `UserError` as `read_clip_names`."""
    with open_features(path) as file:
        _check_metadata(file, path, metadata, dtype)
        return {clip: read_sources(file, clip, path) for clip in list_clips(file, path, check_arrays=True)}


def remove_clips(path: Path, clips: Iterable[str]) -> None:
    """Remove the features of clips from a file, but none of other clips in the same groups.

    Raises `UserError` if the file cannot be written, or has other names.
    """
    check_one_name(path, path.stat())
    with _errors_named(path, "be continued", "remove it to start again"), h5py.File(path, "a") as file:
        for clip in clips:
            for part in CLIP_PARTS:
                file.pop(f"{clip}/{part}", None)


@contextmanager
def _errors_named(path: Path, purpose: str, advice: str) -> Iterator[None]:
    """Within the context, an error of the file is raised as `UserError`."""
    try:
        yield
    except HDF5_ERRORS as error:
        raise UserError(f"{path}: cannot {purpose}: {error}; {advice}") from None


def _check_metadata(file: h5py.File, path: Path, metadata: Metadata, dtype: StoredType) -> None:
    wanted = {**metadata, "dtype": dtype}
    try:
        is_new = len(file) == 0
    except HDF5_ERRORS as error:
        raise damaged(path, error) from None
    found = wanted if is_new else {key: read_attribute(file, key, path) for key in wanted}
    # Old files without a dtype hold float32.
    stored = {"dtype": "float32"} | {key: value for key, value in found.items() if value is not None}
    differing = [
        key
        for key, value in wanted.items()
        if (key in stored or key not in ADDED) and without_name(stored.get(key, "")) != without_name(value)
    ]
    if differing:
        before, now = ({key: values[key] for key in differing if key in values} for values in (stored, wanted))
        raise UserError(
            f"{path}: holds features made with {_listed(before)}, now asked for {_listed(now)}; "
            "remove the file or give another --out"
        )


def _listed(metadata: Metadata) -> str:
    return ", ".join(f"{name} {value}" for name, value in metadata.items()) or "unknown encoders"
