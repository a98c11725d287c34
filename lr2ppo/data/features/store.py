"""The feature store: HDF5 files with one group a clip, `text_emb [labels, T, D]` and `img_emb [1, frames, D]`."""

import math
import os
import re
import shlex
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from glob import escape, has_magic
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
import yaml
from numpy.typing import NDArray

from lr2ppo.data.features.encoders import common_encoding, read_encoding
from lr2ppo.data.features.hdf5 import (
    FileIdentity,
    find_array,
    identify,
    list_clips,
    open_array,
    open_features,
    open_group,
)
from lr2ppo.data.features.layout import ClipShape, Sources, read_info, read_shape, read_sources
from lr2ppo.errors import UserError, path_errors_as_user_errors, shorten_middle
from lr2ppo.files import match_paths

Array = NDArray[np.float32]
MAX_OPEN_FILES = 64
CLIPS_COMPARED = 9
LONGEST_ID_SHOWN = 200


class FeatureStore:
    """Features of clips from one or several files, opened on first use in each process.

    Files are read row by row: reading some labels of a clip reads no others, and nothing is cached.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        """Raises `UserError` if a file is missing or not HDF5, or no clip is found, or if two files do not match or
        hold the same clip."""
        self.paths = list(paths)
        for path in self.paths:
            _require_file(path)
        self._files = _OpenFiles(self.paths)
        self._info = [read_info(self._files[shard], path) for shard, path in enumerate(self.paths)]
        per_frame = {info.tokens_per_frame for info in self._info}
        if len(per_frame) > 1:
            raise UserError(
                f"{', '.join(map(str, self.paths))}: found {sorted(per_frame)} tokens a frame, wanted the same in all "
                "files of a store; extract them with the same --frame-tokens"
            )
        self.tokens_per_frame = per_frame.pop()
        self.encoding = common_encoding(
            {path: read_encoding(self._files[shard], path) for shard, path in enumerate(self.paths)}
        )
        self._shard_of = self._list_clips()
        self._widths = self._find_widths()
        # The largest widths of all domains: narrower features are padded with zeros.
        self.text_width, self.image_width = (max(widths) for widths in zip(*self._widths.values(), strict=True))

    @property
    def bytes_read(self) -> int:
        """Bytes of stored features that this process has read."""
        return self._files.bytes_read

    @property
    def identities(self) -> list[FileIdentity]:
        """The identity of each file as it was when the store was opened."""
        return [self._files.identities[number] for number in range(len(self.paths))]

    def check_unchanged(self) -> None:
        """Raise `UserError` if an open file has another content than when the store was opened."""
        self._files.check_unchanged()

    def __contains__(self, clip_id: str) -> bool:
        return clip_id in self._shard_of

    def shape(self, clip_id: str) -> ClipShape:
        """The shape of a clip's features, without reading them; raises ValueError if they are malformed."""
        shard = self._shard(clip_id)
        return read_shape(self._files[shard], clip_id, self._info[shard])

    def sources(self, clip_id: str) -> Sources | None:
        """What the clip's features were made from; None if the file does not say."""
        shard = self._shard(clip_id)
        return read_sources(self._files[shard], clip_id, self.paths[shard])

    def widths(self, clip_id: str) -> tuple[int, int]:
        """The text and image widths of the domain of a clip's file."""
        return self._widths[self._info[self._shard(clip_id)].domain]

    def text(self, clip_id: str, labels: Sequence[int]) -> tuple[Array, NDArray[np.int64]]:
        """Token features of some labels `[len(labels), T, D]`, padded with zeros, and each label's length."""
        shard, group = self._group(clip_id)
        dataset = open_array(self._files[shard], group, clip_id, "text_emb")
        lengths = self.lengths(clip_id, labels)
        tokens = int(lengths.max(initial=0))
        if list(labels) == list(range(dataset.shape[0])):
            rows = dataset[:, :tokens]
        else:
            rows = np.stack([dataset[label, :tokens] for label in labels])
        return _pad_width(self._as_floats(shard, rows), self.text_width), lengths

    def lengths(self, clip_id: str, labels: Sequence[int]) -> NDArray[np.int64]:
        """The number of tokens of some labels: `[len(labels)]`."""
        shard, group = self._group(clip_id)
        stored = find_array(self._files[shard], group, clip_id, "text_len")
        if stored is None:
            tokens = open_array(self._files[shard], group, clip_id, "text_emb").shape[1]
            return np.full(len(labels), tokens, dtype=np.int64)
        lengths: NDArray[np.int64] = stored[()].astype(np.int64)[labels]
        return lengths

    def label_spans(self, clip_id: str, labels: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
        """Start and stop of some labels' words among their `lengths` tokens: `[len(labels), 2]`.

        Files without spans hold RoBERTa's tokens, `<s> label ...`: the words start after the first token.
        """
        shard, group = self._group(clip_id)
        stored = find_array(self._files[shard], group, clip_id, "label_span")
        if stored is not None:
            spans: NDArray[np.int64] = stored[()].astype(np.int64)[labels]
            return spans
        first = np.minimum(1, lengths - 1)
        return np.stack([first, first + 1], axis=1)

    def frames(self, clip_id: str) -> Array:
        """Features of all frames of a clip: `[frames, tokens_per_frame, D]`."""
        shard, group = self._group(clip_id)
        rows = self._as_floats(shard, open_array(self._files[shard], group, clip_id, "img_emb")[()])
        return _pad_width(rows.reshape(-1, self.tokens_per_frame, rows.shape[-1]), self.image_width)

    def _as_floats(self, shard: int, rows: NDArray[Any]) -> Array:
        self._files.bytes_read += rows.nbytes
        if self._info[shard].in_bfloat16:
            # A bfloat16 is the upper half of a float32.
            return (rows.astype(np.uint32) << 16).view(np.float32)
        # Values beyond float32 become infinite, which the check of values reports.
        with np.errstate(over="ignore"):
            return rows.astype(np.float32, copy=False)

    def _list_clips(self) -> dict[str, int]:
        """The index of the file that holds each clip; raises `UserError` if two files hold the same one."""
        found: dict[str, int] = {}
        for shard, path in enumerate(self.paths):
            for name in list_clips(self._files[shard], path):
                first = self.paths[found.setdefault(name, shard)]
                if found[name] != shard:
                    raise UserError(
                        f"{path}: clip {shorten_middle(name, LONGEST_ID_SHOWN)}: found in {first} too, wanted in one "
                        "file; name only one of them in data.features, or remove it"
                    )
        return found

    def _shard(self, clip_id: str) -> int:
        shard = self._shard_of.get(clip_id)
        if shard is None:
            raise KeyError(f"clip {clip_id} has no features in {', '.join(map(str, self.paths))}")
        return shard

    def _group(self, clip_id: str) -> tuple[int, h5py.h5g.GroupID]:
        shard = self._shard(clip_id)
        return shard, open_group(self._files[shard], clip_id)

    def _find_widths(self) -> dict[str, tuple[int, int]]:
        """The widths of each domain: the most common among its first clips, so that one faulty clip does not decide."""
        counts: dict[str, Counter[tuple[int, int]]] = {info.domain: Counter() for info in self._info}
        fault = ""
        for name, shard in self._shard_of.items():
            widths = counts[self._info[shard].domain]
            if widths.total() == CLIPS_COMPARED:
                continue
            try:
                shape = self.shape(name)
                widths[shape.text_width, shape.image_width] += 1
            except ValueError as error:
                fault = fault or f"; clip {name}: {error}"
        if not all(counts.values()):
            raise UserError(f"{', '.join(map(str, self.paths))}: found no clip with text_emb and img_emb{fault}")
        return {domain: widths.most_common(1)[0][0] for domain, widths in counts.items()}


def _pad_width(rows: Array, width: int) -> Array:
    """Pad rows with zeros to a width."""
    missing = width - rows.shape[-1]
    return np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, missing)]) if missing else rows


class _OpenFiles:
    """Files by index: each process opens its own on first use, a limited number at a time.

    A file is the same each time, by `identities`, or a `UserError` is raised.
    """

    def __init__(self, paths: Sequence[Path], identities: Mapping[int, FileIdentity] = MappingProxyType({})) -> None:
        self._paths = paths
        self.identities = dict(identities)
        self._reset()

    def __reduce__(self) -> tuple[type["_OpenFiles"], tuple[Sequence[Path], dict[int, FileIdentity]]]:
        return type(self), (self._paths, self.identities)

    def __getitem__(self, number: int) -> h5py.File:
        if self._process != os.getpid():
            self._reset()
        if number not in self._open:
            if len(self._open) == MAX_OPEN_FILES:
                _, longest_unused = self._open.popitem(last=False)
                longest_unused.close()
            file = open_features(self._paths[number])
            self._check_same(number, file)
            self._open[number] = file
        self._open.move_to_end(number)
        return self._open[number]

    def check_unchanged(self) -> None:
        """Raise `UserError` if a file that is open here has changed; others are compared when they are opened."""
        for number, file in self._open.items():
            self._check_same(number, file)

    def _check_same(self, number: int, file: h5py.File) -> None:
        found = identify(file)
        if not found.has_content_of(self.identities.setdefault(number, found)):
            raise UserError(
                f"{self._paths[number]}: changed while it was in use; let no other program write it, and run the same "
                "command again: it tells whether the features are still those that it started with"
            )

    @property
    def bytes_read(self) -> int:
        # A forked process starts with its parent's count.
        return self._bytes_read if self._process == os.getpid() else 0

    @bytes_read.setter
    def bytes_read(self, number: int) -> None:
        self._bytes_read = number

    def _reset(self) -> None:
        self._process = os.getpid()
        self._open: OrderedDict[int, h5py.File] = OrderedDict()
        self._bytes_read = 0


def find_feature_files(root: Path, names: Sequence[str]) -> list[Path]:
    """The feature files of a folder, each once; names may be patterns. Raises `UserError` if nothing matches."""
    paths: list[Path] = []
    for name in names:
        paths += match_paths(root, name) if has_magic(name) else [root / name]
    if not paths:
        raise UserError(f"data.features: nothing in {root} matches {', '.join(names)}")
    return list(dict.fromkeys(paths))


def find_shards(path: Path) -> list[Path]:
    """The existing shards of a feature file, written by any number of processes."""
    name = re.compile(rf"{re.escape(path.stem)}-\d+-of-\d+{re.escape(path.suffix)}")
    with path_errors_as_user_errors():
        return sorted(found for found in path.parent.glob("*") if name.fullmatch(found.name))


def shards_setting(path: Path) -> str:
    """The setting, quoted for a shell, with which a stage reads a feature file and its shards, if they exist."""
    shards = f"{escape(path.stem)}-*-of-*{escape(path.suffix)}"
    names = [path.name] * path.is_file() + [shards] * bool(find_shards(path))
    as_yaml = yaml.safe_dump(names, default_flow_style=True, allow_unicode=True, width=math.inf).strip()
    return shlex.quote(f"data.features={as_yaml}")


def _require_file(path: Path) -> None:
    # Of what is there but no regular file, its opening tells what is wrong.
    if os.path.lexists(path):
        return
    if find_shards(path):
        raise UserError(f"{path}: no such feature file, but it has shards; read them with {shards_setting(path)}")
    raise UserError(
        f"{path}: no such feature file; make it with: "
        f"lr2ppo extract --data {shlex.quote(str(path.parent))} --text ENCODER --image ENCODER"
    )
