"""The layout of a clip's features in an HDF5 file, and messages about features in another one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from lr2ppo.data.features.hdf5 import HDF5_ERRORS, MOST_INFLATED, damaged, find_array, open_group
from lr2ppo.data.features.names import CLIP_PARTS
from lr2ppo.errors import UserError

# A clip's attributes.
SOURCES = ("text_source", "frames_source", "images_source")
# Deflate compresses at best, on zeros, to 1/1032.
MAX_COMPRESSION = 1100


@dataclass(frozen=True)
class ClipShape:
    """The numbers of labels, text tokens per label and frames of a clip's features, and their widths."""

    labels: int
    tokens: int
    frames: int
    text_width: int
    image_width: int


@dataclass(frozen=True)
class Sources:
    """Fingerprints of what a clip's features were made from: labels and description, frames, and the frames' paths.

    Files of earlier versions lack that of the paths, `images`.
    """

    text: str
    frames: str
    images: str | None

    def agree(self, now: "Sources") -> bool:
        """Whether a clip's features need not be made again, if they would be made from `now`."""
        return self in (now, replace(now, images=None))


@dataclass(frozen=True)
class FileInfo:
    """A feature file's attributes, which hold for all its clips."""

    in_bfloat16: bool
    tokens_per_frame: int
    # Features of one domain have the same widths; files without a domain share one.
    domain: str = ""


def read_info(file: h5py.File, path: Path) -> FileInfo:
    """Read a file's attributes; raises `UserError` if they cannot be read or are invalid."""
    dtype, per_frame = (read_attribute(file, name, path) for name in ("dtype", "tokens_per_frame"))
    per_frame = 1 if per_frame is None else per_frame
    if not isinstance(per_frame, int) or per_frame < 1:
        raise UserError(f"{path}: attribute tokens_per_frame: found {per_frame!r}, wanted a whole number above 0")
    return FileInfo(dtype == "bfloat16", per_frame, read_fixed_text(file, "domain", path) or "")


def read_attribute(file: h5py.Group, name: str, path: Path) -> str | int | None:
    """Read a string or integer attribute, None if it is missing; raises `UserError` if it has another type."""
    try:
        if name not in file.attrs:
            return None
        stored = file.attrs.get_id(name)
        is_text = h5py.check_string_dtype(stored.dtype) is not None
        # Reading a damaged attribute of unknown type can crash this process.
        if stored.shape != () or not (is_text or stored.dtype.kind in "iu"):
            raise ValueError(
                f"attribute {name}: found {stored.dtype} {stored.shape}, wanted a string or a whole number"
            )
        value = file.attrs[name]
        if not is_text:
            return int(value)
        return value if isinstance(value, str) else str(value, "utf-8")
    except HDF5_ERRORS as error:
        raise damaged(path, error) from None


def read_fixed_text(file: h5py.Group, name: str, path: Path) -> str | None:
    """Read a fixed-length string attribute, None if it is missing or of variable length.

    HDF5 keeps variable-length strings in a heap: reading them from a damaged file can crash this process.
    """
    try:
        is_fixed = name in file.attrs and file.attrs.get_id(name).dtype.kind == "S"
    except HDF5_ERRORS as error:
        raise damaged(path, error) from None
    value = read_attribute(file, name, path) if is_fixed else None
    return value if isinstance(value, str) else None


def read_shape(file: h5py.File, clip_id: str, info: FileInfo) -> ClipShape:
    """The shape of a clip's features, without reading them.

    Raises ValueError if they are malformed, `UserError` if they are not in this file.
    """
    try:
        group = open_group(file, clip_id)
        found = {name: find_array(file, group, clip_id, name) for name in CLIP_PARTS}
        arrays = {name: array for name, array in found.items() if array is not None}
        shapes = {name: array.shape for name, array in arrays.items()}
        labels, tokens, rows, text_width, image_width = _read_sizes(shapes)
        for name, array in arrays.items():
            _check_dtype(name, array.dtype, info.in_bfloat16)
            _check_bytes(name, array)
    except (OSError, RuntimeError, TypeError, LookupError) as error:
        raise ValueError(f"its features cannot be read: {error}") from None
    if rows % info.tokens_per_frame:
        raise ValueError(f"found img_emb of {rows} rows, wanted {info.tokens_per_frame} a frame, as the file says")
    return ClipShape(labels, tokens, rows // info.tokens_per_frame, text_width, image_width)


def read_sources(file: h5py.File, clip_id: str, path: Path) -> Sources | None:
    """What a clip's features were made from; None if the file does not say, as published ones."""
    group = h5py.Group(open_group(file, clip_id))
    text, frames, images = (read_fixed_text(group, name, path) for name in SOURCES)
    return None if text is None or frames is None else Sources(text, frames, images)


def _read_sizes(shapes: Mapping[str, tuple[int, ...] | None]) -> tuple[int, int, int, int, int]:
    """Labels, tokens, frame rows and both widths; raises ValueError if the arrays have other shapes."""
    text, image = shapes.get("text_emb"), shapes.get("img_emb")
    if text is None or image is None or len(text) != 3 or len(image) != 3 or image[0] != 1 or not text[2] * image[2]:
        raise ValueError(
            f"found text_emb {text} and img_emb {image}, wanted [labels, tokens, width] and [1, frames, width]"
        )
    if "text_len" in shapes and shapes["text_len"] != text[:1]:
        raise ValueError(f"found text_len {shapes['text_len']}, wanted one number for each of {text[0]} labels")
    if "label_span" in shapes and shapes["label_span"] != (text[0], 2):
        raise ValueError(f"found label_span {shapes['label_span']}, wanted two numbers for each of {text[0]} labels")
    return text[0], text[1], image[1], text[2], image[2]


def _check_dtype(name: str, dtype: np.dtype[np.generic], in_bfloat16: bool) -> None:
    if name in ("text_len", "label_span"):
        if dtype.kind not in "iu":
            raise ValueError(f"{name}: found {dtype}, wanted whole numbers")
    elif in_bfloat16 and (dtype.kind, dtype.itemsize) != ("u", 2):
        raise ValueError(f"{name}: found {dtype}, wanted bfloat16 stored as uint16, as the file says")
    elif not in_bfloat16 and dtype.kind != "f":
        raise ValueError(f"{name}: found {dtype}, wanted floats")


def _check_bytes(name: str, array: h5py.Dataset) -> None:
    """Raise ValueError if an array was not fully written, or if it is compressed and very large."""
    compressed = array.id.get_create_plist().get_nfilters() > 0
    stored = array.id.get_storage_size()
    # An array that was never written, or has a wrong size, would be read as zeros, or not fit in memory.
    if array.nbytes > stored * (MAX_COMPRESSION if compressed else 1):
        raise ValueError(f"{name}: found {stored} bytes, wanted {array.nbytes}; was it fully written?")
    if compressed and array.nbytes > MOST_INFLATED:
        raise ValueError(
            f"{name}: found a compressed array of {array.nbytes:,} bytes, wanted at most {MOST_INFLATED:,}"
        )
