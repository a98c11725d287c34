"""The one way into a feature file, which opens only what the file itself holds.

HDF5 files can lead to other files, pipes and devices: by links, virtual arrays and arrays in external storage. Opening
and reading any object of a feature file goes through here, and what leads out of the file is refused before that. So is
a compressed array that would take far more memory than a clip's features do.
"""

import math
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
from h5py import h5d, h5g, h5l, h5o, h5p, h5t, h5z

from lr2ppo.data.features.names import CLIP_PARTS, LONGEST_ID
from lr2ppo.errors import UserError, advise, shorten_middle
from lr2ppo.files import check_regular

# h5py raises any of these for a damaged file.
HDF5_ERRORS = (OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, MemoryError)
OWN_LAYOUTS = (h5d.COMPACT, h5d.CONTIGUOUS, h5d.CHUNKED)
PARTS = {part.encode() for part in CLIP_PARTS}
LINKS = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "a link to another file"}
LONGEST_PLACE = 200
ADVICE = "copy what it names into the file itself, or remove it and extract the features again"
# What h5py writes with `compression="lzf"`.
LZF = 32000
# The filters that may be applied to a chunk, in this order.
FILTERS = (h5z.FILTER_SHUFFLE, h5z.FILTER_DEFLATE, LZF, h5z.FILTER_FLETCHER32)
# How many bytes each byte of a compressed chunk can become.
EXPANSION = {h5z.FILTER_DEFLATE: 1032, LZF: 88}
CHECKSUM_BYTES = 4
# Small chunks may be larger than their array: h5py makes them up to this size for arrays that can grow.
SMALL_CHUNK = 2**20
# Of a compressed array, and of what any of its chunks becomes.
MOST_INFLATED = 2**28
PIECE = 2**16
STORE_PLAINLY = "store it without chunks and compression, or remove it and extract the features again"


def open_features(path: Path) -> h5py.File:
    """Open a feature file for reading; raises `UserError` if it is missing, no regular file, or not complete."""
    try:
        check_regular(path)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{path}: cannot be read as a feature file: {reason}; {advise(error)}") from None
    try:
        return h5py.File(path, "r")
    except HDF5_ERRORS as error:
        raise UserError(
            f"{path}: is not a whole HDF5 file, or is still being written: {error}; wait, or remove and make it again"
        ) from None


class FileIdentity(NamedTuple):
    """What differs if a file is replaced, or changed, even to one of the same size and time of change.

    The system sets `changed_ns`, and no program can choose it; it also changes with the file's names and rights.
    """

    device: int
    number: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileIdentity":
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def has_content_of(self, other: "FileIdentity") -> bool:
        return self[:-1] == other[:-1]


def identify(file: h5py.File) -> FileIdentity:
    """The identity of an open file, whatever its path leads to now."""
    return FileIdentity.of(os.fstat(file.id.get_vfd_handle()))


def damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"{path}: is damaged: {error}; copy or make it again")


def list_clips(file: h5py.File, path: Path, check_arrays: bool = False) -> list[str]:
    """The ids of the clips in a file, which are the names of their groups.

    A clip's group with several names is listed under each, what is inside a group only once: the time is proportional
    to the number of links. Raises `UserError` if the groups cannot be listed, or if a link or, with `check_arrays`,
    which opens every array, an array's numbers lead out of the file.
    """
    try:
        return list(_clip_names(file, check_arrays))
    except HDF5_ERRORS as error:
        raise damaged(path, error) from None


def _clip_names(file: h5py.File, check_arrays: bool) -> Iterator[str]:
    holds_clip: dict[int, bool] = {}
    # Objects still to open: the group above, the link's name there, and the whole name.
    pending: list[tuple[h5g.GroupID, bytes, str]] = [(file.id, b"/", "")]
    while pending:
        above, link, name = pending.pop()
        found = h5o.open(above, link)
        if isinstance(found, h5d.DatasetID):
            _require_own_numbers(file, found, name)
        if not isinstance(found, h5g.GroupID) or link in PARTS:
            continue
        if len(name) > LONGEST_ID:
            raise _refusal(file, name, f"a group's name of {len(name):,} characters", f"at most {LONGEST_ID:,}")
        address = h5o.get_info(found).addr
        # What is inside a group of several names, perhaps itself, is visited once.
        members = [] if address in holds_clip else _list_links(file, found, name)
        if holds_clip.setdefault(address, b"img_emb" in members) and name:
            yield name
        # The last one is opened next.
        for member in reversed(members):
            inner = _as_text(member)
            # Names that are not UTF-8 are no clip's id.
            if inner is not None and (check_arrays or member not in PARTS):
                pending.append((found, member, f"{name}/{inner}" if name else inner))


def open_group(file: h5py.File, name: str) -> h5g.GroupID:
    """Open a clip's group by its id; raises KeyError if there is none, `UserError` if the way leads out of the file."""
    group = file.id
    for part in name.split("/"):
        group = _open_link(file, group, part, name)
        if not isinstance(group, h5g.GroupID):
            raise KeyError(f"{part!r} is no group")
    return group


def open_array(file: h5py.File, group: h5g.GroupID, clip_id: str, part: str) -> h5py.Dataset:
    """Open one of `CLIP_PARTS` in a clip's group.

    Raises KeyError if it is missing, ValueError if it is no array, `UserError` if it or its numbers are elsewhere.
    """
    place = f"{clip_id}/{part}"
    found = _open_link(file, group, part, place)
    if not isinstance(found, h5d.DatasetID):
        raise ValueError(
            f"{part}: found a {'group' if isinstance(found, h5g.GroupID) else 'datatype'}, wanted an array"
        )
    _require_own_numbers(file, found, place)
    return h5py.Dataset(found)


def find_array(file: h5py.File, group: h5g.GroupID, clip_id: str, part: str) -> h5py.Dataset | None:
    """Open one of `CLIP_PARTS` as `open_array` does; None if it is missing."""
    return open_array(file, group, clip_id, part) if group.links.exists(part.encode()) else None


def _list_links(file: h5py.File, group: h5g.GroupID, name: str) -> list[bytes]:
    """The names of a group's links, none of which leads elsewhere."""
    links: list[tuple[bytes, int]] = []
    group.links.iterate(lambda member, info: links.append((member, info.type)), info=True)
    for member, kind in links:
        place = f"{name}/{member.decode(errors='replace')}"
        _require_hard(file, kind, place)
        # HDF5 would take it for a path, and follow the links on it.
        if b"/" in member or member in (b"", b"."):
            raise _refusal(file, place, "a slash or nothing in a link's name", "neither")
    return [member for member, _ in links]


def _open_link(file: h5py.File, group: h5g.GroupID, part: str, place: str) -> h5g.GroupID | h5d.DatasetID | h5t.TypeID:
    """Open an object by its link's name in a group, which HDF5 follows only after its kind is known."""
    _require_hard(file, group.links.get_info(part.encode()).type, place)
    return h5o.open(group, part.encode())


def _require_hard(file: h5py.File, kind: int, place: str) -> None:
    if kind != h5l.TYPE_HARD:
        raise _refusal(file, place, LINKS.get(kind, "a link of an unknown kind"), "what this file itself holds")


def _require_own_numbers(file: h5py.File, array: h5d.DatasetID, place: str) -> None:
    """Raise `UserError` if an array's numbers are elsewhere, or would take far more memory than they are worth."""
    created = array.get_create_plist()
    # Asking for the shape of these may open other files.
    if created.get_external_count():
        raise _refusal(file, place, "an array whose numbers are in other files", "them in this file")
    layout = created.get_layout()
    if layout not in OWN_LAYOUTS:
        raise _refusal(file, place, "a virtual array, made of other arrays", "its numbers in this file")
    stored, most = array.get_storage_size(), file.id.get_filesize()
    if stored > most:
        raise _refusal(file, place, f"{stored:,} bytes", f"at most the {most:,} of the file", STORE_PLAINLY)
    if layout == h5d.CHUNKED:
        _require_bounded_chunks(file, array, created, place)


def _require_bounded_chunks(file: h5py.File, array: h5d.DatasetID, created: h5p.PropDCID, place: str) -> None:
    """Raise `UserError` if reading a chunk could take far more memory than the array."""
    filters = [created.get_filter(number)[0] for number in range(created.get_nfilters())]
    if filters != [each for each in FILTERS if each in filters] or {*EXPANSION} <= {*filters}:
        wanted = "at most shuffle, one of gzip and lzf, and fletcher32"
        raise _refusal(file, place, f"the filters {', '.join(map(str, filters))}", wanted, STORE_PLAINLY)
    number_bytes = array.get_type().get_size()
    chunk = math.prod(created.get_chunk()) * number_bytes
    most = min(max(SMALL_CHUNK, 4 * math.prod(array.shape) * number_bytes), MOST_INFLATED)
    if chunk > most:
        raise _refusal(file, place, f"chunks of {chunk:,} bytes", f"at most {most:,}", STORE_PLAINLY)
    chunks: list[h5d.StoreInfo] = []
    array.chunk_iter(chunks.append)
    for stored in chunks:
        if not _is_bounded(array, stored, filters, chunk):
            found = f"a chunk of {stored.size:,} bytes that may become more than its {chunk:,}"
            raise _refusal(file, place, found, "its numbers alone", STORE_PLAINLY)


def _is_bounded(array: h5d.DatasetID, stored: h5d.StoreInfo, filters: Sequence[int], chunk: int) -> bool:
    """Whether a stored chunk becomes no more than `chunk` bytes, or anyway few."""
    applied = [each for place, each in enumerate(filters) if not stored.filter_mask >> place & 1]
    plain = chunk + CHECKSUM_BYTES * (h5z.FILTER_FLETCHER32 in applied)
    expansion = next((EXPANSION[each] for each in applied if each in EXPANSION), None)
    if expansion is None:
        return bool(stored.size == plain)
    # What cannot be compressed grows a little.
    if stored.size > plain + plain // 1000 + 64:
        return False
    if stored.size * expansion <= MOST_INFLATED:
        return True
    return h5z.FILTER_DEFLATE in applied and _inflates_to(array, stored.chunk_offset, chunk)


def _inflates_to(array: h5d.DatasetID, offset: tuple[int, ...], most: int) -> bool:
    """Whether a deflated chunk becomes at most `most` bytes; takes little memory to find out."""
    stream, size = zlib.decompressobj(), 0
    _, content = array.read_direct_chunk(offset)
    try:
        for start in range(0, len(content), PIECE):
            size += len(stream.decompress(content[start : start + PIECE]))
            if size > most:
                return False
    except zlib.error:
        # HDF5 stops here too, and reports it.
        pass
    return True


def _refusal(file: h5py.File, place: str, found: str, wanted: str, advice: str = ADVICE) -> UserError:
    shown = shorten_middle(place.strip("/"), LONGEST_PLACE)
    return UserError(f"{file.filename}: {shown!r}: found {found}, wanted {wanted}; {advice}")


def _as_text(name: bytes) -> str | None:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None
