"""Writing feature files clip by clip, so that an extraction that was stopped goes on."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, Self

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from lr2ppo.data.features.layout import CLIP_PARTS, DAMAGE, damaged, list_clips, open_features, read_attribute
from lr2ppo.data.features.store import Array
from lr2ppo.errors import UserError

Facts = Mapping[str, str | int]
StoredType = Literal["float32", "float16", "bfloat16"]
LARGEST = {name: torch.finfo(getattr(torch, name)).max for name in ("float32", "float16", "bfloat16")}


class FeatureWriter:
    """Writes a feature file clip by clip; a file begun earlier with the same `facts` and `dtype` is continued."""

    def __init__(
        self, path: Path, facts: Facts, dtype: StoredType = "float32", notes: Facts = MappingProxyType({})
    ) -> None:
        """`facts` say what made the features (encoders, tokens a frame); raises `UserError` where a file's differ.

        `notes` are told of the file too, but may be others where it is continued, as paths may.
        """
        self._path, self._dtype = path, dtype
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = h5py.File(path, "a")
        except OSError as error:
            raise UserError(f"{path}: cannot be written or continued: {error}; remove it to start anew") from None
        try:
            _check_facts(self._file, path, facts, dtype)
        except UserError:
            self._file.close()
            raise
        for name, fact in {**facts, **notes, "dtype": dtype}.items():
            # Of fixed length: damage to a text of any length can end the process that reads it.
            self._file.attrs[name] = np.bytes_(fact.encode()) if isinstance(fact, str) else fact

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def write(
        self, clip_id: str, text: Sequence[Array], frames: Array, label_span: Sequence[tuple[int, int]] | None = None
    ) -> None:
        """Write one clip: `text`, an array `[tokens, D]` a label; `frames [rows, D]`, no rows where it has no frames.

        `label_span` says where each label's own words start and stop among its tokens (None: behind the first token).
        Raises `UserError` before anything is written where a feature is too large for the file's dtype.
        """
        lengths = np.array([len(tokens) for tokens in text], dtype=np.int32)
        padded = np.zeros((len(text), lengths.max(), text[0].shape[-1]), dtype=np.float32)
        for row, tokens in zip(padded, text, strict=True):
            row[: len(tokens)] = tokens
        stored = {"text_len": lengths, "text_emb": self._as_stored(clip_id, padded)}
        if label_span is not None:
            stored["label_span"] = np.array(label_span, dtype=np.int32)
        # Written last: a clip counts as done once it is there.
        stored["img_emb"] = self._as_stored(clip_id, frames[None])
        # A group may hold other clips too: the id of one can be a folder in the id of another.
        group = self._file.require_group(clip_id)
        for part in CLIP_PARTS:
            if part in group:
                del group[part]
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
            # HDF5 has no bfloat16: its bits are stored as whole numbers.
            return torch.tensor(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return values.astype(self._dtype, copy=False)


def read_clip_names(path: Path, facts: Facts, dtype: StoredType) -> set[str]:
    """The `group_name` of each clip that a feature file holds.

    Raises `UserError` where the file cannot be read or holds clips made with other facts or of another dtype.
    """
    with open_features(path) as file:
        _check_facts(file, path, facts, dtype)
        return set(list_clips(file, path))


def _check_facts(file: h5py.File, path: Path, facts: Facts, dtype: StoredType) -> None:
    wanted = {**facts, "dtype": dtype}
    try:
        is_new = len(file) == 0
    except DAMAGE as error:
        raise damaged(path, error) from None
    found = wanted if is_new else {key: read_attribute(file, key, path) for key in wanted}
    told = {key: fact for key, fact in found.items() if fact is not None}
    # Files made before there was a choice hold float32.
    if {"dtype": "float32"} | told != wanted:
        raise UserError(
            f"{path}: holds features made with {_listed(told)}, now asked for {_listed(wanted)}; "
            "remove the file or give another --out"
        )


def _listed(facts: Facts) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items()) or "what it does not tell"
