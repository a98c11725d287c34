"""The layout of a clip's features in an HDF5 file, and messages about features in another one."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py

from lr2ppo.errors import UserError

# The arrays in a clip's group; label_span and text_len may be missing.
CLIP_PARTS = ("text_len", "label_span", "text_emb", "img_emb")
# h5py raises any of these for a damaged file.
HDF5_ERRORS = (OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
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
class FileInfo:
    """A feature file's attributes, which hold for all its clips."""

    in_bfloat16: bool
    tokens_per_frame: int
    # Features of one domain have the same widths; files without a domain share one.
    domain: str = ""


def open_features(path: Path) -> h5py.File:
    """Open a feature file for reading; raises `UserError` if it is not complete."""
    try:
        return h5py.File(path, "r")
    except HDF5_ERRORS as error:
        raise UserError(
            f"{path}: is not a whole HDF5 file, or is still being written: {error}; wait, or remove and make it again"
        ) from None


def read_info(file: h5py.File, path: Path) -> FileInfo:
    """Read a file's attributes; raises `UserError` if they cannot be read or are invalid."""
    dtype, per_frame = (read_attribute(file, name, path) for name in ("dtype", "tokens_per_frame"))
    per_frame = 1 if per_frame is None else per_frame
    if not isinstance(per_frame, int) or per_frame < 1:
        raise UserError(f"{path}: attribute tokens_per_frame: found {per_frame!r}, wanted a whole number above 0")
    return FileInfo(dtype == "bfloat16", per_frame, read_fixed_text(file, "domain", path) or "")


def read_attribute(file: h5py.File, name: str, path: Path) -> str | int | None:
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


def read_fixed_text(file: h5py.File, name: str, path: Path) -> str | None:
    """Read a fixed-length string attribute, None if it is missing or of variable length.

    HDF5 keeps variable-length strings in a heap: reading them from a damaged file can crash this process.
    """
    try:
        is_fixed = name in file.attrs and file.attrs.get_id(name).dtype.kind == "S"
    except HDF5_ERRORS as error:
        raise damaged(path, error) from None
    value = read_attribute(file, name, path) if is_fixed else None
    return value if isinstance(value, str) else None


def list_clips(file: h5py.File, path: Path) -> list[str]:
    """The `group_name` of each clip in a file; raises `UserError` if its groups cannot be listed."""
    try:
        return list(clip_names(file))
    except HDF5_ERRORS as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path}: is damaged: {error}; copy or make it again")


def group_name(clip_id: str) -> str:
    """The name of a clip's group in HDF5, which ignores empty and `.` parts of its id."""
    return "/".join(part for part in clip_id.split("/") if part not in ("", "."))


def clip_names(group: h5py.Group, name: str = "", above: frozenset[object] = frozenset()) -> Iterator[str]:
    """The names of all groups below `group` that hold a clip; no dataset is opened."""
    info = h5py.h5o.get_info(group.id)
    here = (info.fileno, info.addr)
    if here in above:
        # A link to a group above would loop for ever.
        return
    # Slashes in clip ids nest groups, and one clip's group may hold others'.
    # Names that are not UTF-8 are no clip's id.
    members = [member for member in group if isinstance(member, str)]
    if name and "img_emb" in members:
        yield name
    for member in members:
        inner = None if member in CLIP_PARTS else group.get(member)
        if isinstance(inner, h5py.Group):
            yield from clip_names(inner, f"{name}/{member}" if name else member, above | {here})


def read_shape(file: h5py.File, clip_id: str, info: FileInfo) -> ClipShape:
    """The shape of a clip's features, without reading them; raises ValueError if they are malformed."""
    try:
        group = file[clip_id]
        arrays = {name: _find_array(group, name) for name in CLIP_PARTS if name in group}
        shapes = {name: array.shape for name, array in arrays.items()}
        labels, tokens, rows, text_width, image_width = _read_sizes(shapes)
        for name in ("text_emb", "img_emb"):
            _check_numbers(name, arrays[name], info.in_bfloat16)
        for name in arrays.keys() & {"text_len", "label_span"}:
            if arrays[name].dtype.kind not in "iu":
                raise ValueError(f"{name}: found {arrays[name].dtype}, wanted whole numbers")
    except (OSError, RuntimeError, TypeError, LookupError) as error:
        raise ValueError(f"its features cannot be read: {error}") from None
    if rows % info.tokens_per_frame:
        raise ValueError(f"found img_emb of {rows} rows, wanted {info.tokens_per_frame} a frame, as the file says")
    return ClipShape(labels, tokens, rows // info.tokens_per_frame, text_width, image_width)


def _find_array(group: h5py.Group, name: str) -> h5py.Dataset:
    found = group[name]
    if not isinstance(found, h5py.Dataset):
        raise ValueError(f"{name}: found a {type(found).__name__.lower()}, wanted an array")
    return found


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


def _check_numbers(name: str, array: h5py.Dataset, in_bfloat16: bool) -> None:
    dtype = array.dtype
    if in_bfloat16 and (dtype.kind, dtype.itemsize) != ("u", 2):
        raise ValueError(f"{name}: found {dtype}, wanted bfloat16 stored as uint16, as the file says")
    if not in_bfloat16 and dtype.kind != "f":
        raise ValueError(f"{name}: found {dtype}, wanted floats")
    stored = array.id.get_storage_size()
    if stored >= array.nbytes or array.is_virtual or array.external:
        return
    # An array that was never written, or has a wrong size, would be read as zeros, or not fit in memory.
    compressed = array.id.get_create_plist().get_nfilters() > 0
    if not compressed or array.nbytes > stored * MAX_COMPRESSION:
        raise ValueError(f"{name}: found {stored} bytes, wanted {array.nbytes}; was it fully written?")
