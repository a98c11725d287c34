"""The one way into a feature file, which opens only what the file itself holds.

HDF5 files can lead to other files, pipes and devices: by links, virtual arrays and arrays in external storage. Opening
and reading any object of a feature file goes through here, and what leads out of the file is refused before that.
"""

from collections.abc import Iterator
from pathlib import Path

import h5py
from h5py import h5d, h5g, h5l, h5o, h5t

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
    """Raise `UserError` if an array's numbers are elsewhere; does not ask for its shape, which may open other files."""
    created = array.get_create_plist()
    if created.get_external_count():
        raise _refusal(file, place, "an array whose numbers are in other files", "them in this file")
    if created.get_layout() not in OWN_LAYOUTS:
        raise _refusal(file, place, "a virtual array, made of other arrays", "its numbers in this file")


def _refusal(file: h5py.File, place: str, found: str, wanted: str) -> UserError:
    shown = shorten_middle(place.strip("/"), LONGEST_PLACE)
    return UserError(f"{file.filename}: {shown!r}: found {found}, wanted {wanted}; {ADVICE}")


def _as_text(name: bytes) -> str | None:
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None
