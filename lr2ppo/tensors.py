"""Tensor files, written atomically and read without running any code."""

import hashlib
import os
import pickle
import pickletools
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from struct import Struct
from typing import IO
from zipfile import ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lr2ppo.errors import UserError, raise_faults
from lr2ppo.files import open_regular, write_atomically

TENSOR_FILES = "a safetensors file or a state dict saved with torch.save"
# What the pickle of a state dict names: less than torch permits, which includes calls that take any memory.
STATE_DICT_NAMES = re.compile(
    r"collections OrderedDict|torch \w+Storage|torch\._utils _rebuild_(tensor|tensor_v2|parameter)"
)
# The operations of a pickle that number a value, and those that refer to it later.
NUMBERING, REFERRING = ("BINPUT", "LONG_BINPUT"), ("BINGET", "LONG_BINGET")
# Those that make the key of a mapping.
KEYS = ("BINUNICODE", "SHORT_BINSTRING", "BININT", "BININT1", "BININT2")
# All that torch reads but some that no state dict has.
PERMITTED = {
    *(*NUMBERING, *REFERRING, *KEYS, "PROTO", "STOP", "MARK", "GLOBAL", "BINPERSID", "REDUCE", "BUILD"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT", "LONG1", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
}
# The most values of a tuple, such as a shape, and mappings with attributes: a state dict has one.
LONGEST_TUPLE, MOST_ATTRIBUTES = 64, 16
# Bytes of a number in each kind of storage.
NUMBER_SIZES = {
    f"{kind}Storage": size
    for size, kinds in {1: "Bool Byte Char", 2: "BFloat16 Half Short", 4: "Float Int", 8: "Double Long"}.items()
    for kind in kinds.split()
}
ARCHIVE = b"PK\x03\x04"
# The three parts of an archive's end: with large numbers, where that is, and with small numbers.
END64, LOCATOR, END = Struct("<4sQ2H2L4Q"), Struct("<4sLQL"), Struct("<4s4H2LH")
# Tensors that share memory, as tied weights do, can be more than their file, but not by much.
MOST_SHARING = 2


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors: as safetensors if the name ends with `.safetensors`, else with `torch.save`."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if path.suffix == ".safetensors":
        write_atomically(path, lambda partial: save_file(whole, partial))
    else:
        write_atomically(path, lambda partial: torch.save(whole, partial))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the named tensors of a safetensors or `torch.save` file; the format is found from the content.

    Raises `UserError` if the file is missing, truncated, in another format, or holds anything but tensors. Only tensors
    are ever unpickled.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: found {found}, wanted {TENSOR_FILES}")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    # A safetensors file starts with the length of its JSON header, a torch file with a zip or pickle signature.
    if start[8:] == b"{":
        return _read_safetensors(path)
    if start.startswith((ARCHIVE, b"\x80")):
        return _read_pickle(path)
    raise UserError(f"{path}: is neither a safetensors file nor one saved with torch.save; is it the right file?")


def check_tensors(wanted: Mapping[str, torch.Size], found: Mapping[str, Tensor], source: Path) -> None:
    """Raise `UserError` naming each tensor that is missing, unexpected, of another shape or not of finite floats."""
    faults = [f"{name}: is missing" for name in wanted if name not in found]
    for name, tensor in found.items():
        if name not in wanted:
            faults.append(f"{name}: is not part of this model")
        elif tensor.shape != wanted[name]:
            faults.append(f"{name}: found shape {list(tensor.shape)}, wanted {list(wanted[name])}")
        elif not tensor.is_floating_point():
            faults.append(f"{name}: found {tensor.dtype}, wanted floats")
        elif tensor.layout != torch.strided or tensor.is_meta:
            faults.append(f"{name}: found {tensor.layout} on {tensor.device}, wanted a plain tensor")
        elif not _is_finite(tensor):
            faults.append(f"{name}: holds numbers that are not finite")
    raise_faults(source, faults, "is it the right file, and complete?")


def _is_finite(tensor: Tensor) -> bool:
    # The extremes are NaN if any number is; a mask of all numbers would take a quarter of the tensor's memory again.
    return tensor.numel() == 0 or all(bool(extreme.isfinite()) for extreme in tensor.float().aminmax())


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: is not a complete safetensors file ({error}); copy it again") from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    size = path.stat().st_size
    try:
        _check_pickle(path, size)
        with warnings.catch_warnings(action="ignore"):
            content = _as_dict(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds more than tensors, perhaps code, and none of it was run; wanted a plain state dict"
        ) from None
    except Exception as error:
        # torch raises many different errors for a damaged archive; all mean the same to a user.
        reason = (str(error) or type(error).__name__).partition(". ")[0]
        raise UserError(f"{path}: is truncated or damaged ({reason}); copy it again") from None
    if not isinstance(content, dict) or not content:
        found = "an empty dict" if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: found {found}, wanted a state dict: a mapping of names to tensors")
    strays = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if strays:
        raise UserError(
            f"{path}: found {', '.join(strays[:5])}{' and more' * (len(strays) > 5)}, which are not tensors; "
            "wanted a plain state dict (save only model.state_dict())"
        )
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in content.values())
    if claimed > MOST_SHARING * size:
        raise UserError(
            f"{path}: found {size:,} bytes that stand for tensors of {claimed:,}; wanted each number stored, as "
            "torch.save does for contiguous tensors"
        )
    return {str(name): tensor for name, tensor in content.items()}


def _as_dict(content: object) -> object:
    """A dict of what an OrderedDict holds: a file can set its attributes, such as `items`."""
    return dict(dict.items(content)) if isinstance(content, dict) else content


def _check_pickle(path: Path, size: int) -> None:
    """Raise ValueError if a file is compressed or lacks numbers, UnpicklingError if it has more than tensors."""
    with open_regular(path) as file:
        # As torch tells them apart.
        is_archive = file.read(len(ARCHIVE)) == ARCHIVE
        file.seek(0)
        if is_archive:
            _check_archive(file, size)
        else:
            _check_old_file(file, size)


def _check_old_file(file: IO[bytes], size: int) -> None:
    """Check a file from before torch 1.6: three pickles about the format, the state dict, and the keys of its storages.

    torch leaves the numbers of a storage that is not listed as its memory was.
    """
    for _ in range(3):
        _check_operations(file, size)
    wanted = _read_storages(file, size).sizes.keys()
    listed = _Storages(_checked(file, size)).load()
    # Only texts, which compare at once.
    if not isinstance(listed, list) or not all(type(key) is str for key in listed) or sorted(listed) != sorted(wanted):
        raise ValueError("its list of storages is not that of its tensors")


def _check_archive(file: IO[bytes], size: int) -> None:
    with ZipFile(file) as archive:
        if archive.start_dir != _directory_start(file):
            raise ValueError("its directory is not where torch looks for it")
        parts = archive.infolist()
        # torch would take another one of two parts of a name, without regard to case, or the name that Python replaces.
        names = {part.filename.casefold() for part in parts}
        if len(names) < len(parts) or any(part.filename != part.orig_filename for part in parts):
            raise ValueError("its parts have names that can be read in two ways")
        if sum(part.file_size for part in parts) > size:
            raise ValueError("its parts are compressed, which torch.save never does")
        (folder,) = {part.filename.partition("/")[0] for part in parts}
        with archive.open(f"{folder}/data.pkl") as pickled:
            storages = _read_storages(pickled, size)
        found = {part.filename: part.file_size for part in parts}
        for key, wanted in storages.sizes.items():
            # torch 2.6 reads what follows a part that is too short: other memory of this process.
            if (stored := found.get(f"{folder}/data/{key}", 0)) < wanted:
                raise ValueError(f"found {stored:,} bytes of storage {key}, wanted {wanted:,}")


def _read_storages(file: IO[bytes], size: int) -> "_Storages":
    storages = _Storages(_checked(file, size))
    storages.load()
    return storages


class _Storages(pickle.Unpickler):
    """Reads the sizes of the storages that a pickle refers to, in bytes by their keys; builds no tensors.

    Only for a pickle whose names are checked.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> object:
        if name.endswith("Storage"):
            return name
        return _new_mapping if name == "OrderedDict" else lambda *_: None

    def persistent_load(self, reference: object) -> None:
        match reference:
            # Files from before torch 1.6 add a view, which torch.save leaves out.
            case ("storage", str(kind), str(key), str(), int(numbers), *views) if numbers >= 0 and views in (
                [],
                [None],
            ):
                if kind not in NUMBER_SIZES:
                    raise ValueError(f"found a {kind}, wanted storages of {', '.join(NUMBER_SIZES)}")
                self.sizes[key] = max(numbers * NUMBER_SIZES[kind], self.sizes.get(key, 0))
            case _:
                raise ValueError("its storages are not as torch.save describes them")


def _new_mapping(*content: object) -> OrderedDict[object, object]:
    """An empty mapping, as torch.save makes it before it sets its items; content would be copied each time."""
    if content:
        raise pickle.UnpicklingError("OrderedDict")
    return OrderedDict()


def _directory_start(file: IO[bytes]) -> int:
    """Return where the end of an archive says that its directory starts, which torch believes.

    Python looks right before the end instead, so that one file could be two archives.
    """
    file.seek(-(END64.size + LOCATOR.size + END.size), os.SEEK_END)
    place = file.tell()
    first, second, third = (part.unpack(file.read(part.size)) for part in (END64, LOCATOR, END))
    if third[0] != b"PK\x05\x06":
        raise ValueError("it does not end as torch.save ends it")
    # Larger than 4 GiB, or written by torch, which prepares for that.
    if second[0] == b"PK\x06\x07":
        if first[0] != b"PK\x06\x06" or second[2] != place:
            raise ValueError("it does not end as torch.save ends it")
        return int(first[-1])
    return int(third[-2])


def _check_operations(file: IO[bytes], size: int) -> None:
    """Read a pickle in a file of `size` bytes.

    Raises UnpicklingError if it has more than a state dict has, ValueError if it numbers more values than it can hold,
    which would take their memory.
    """
    stack = _Stack()
    for operation, argument, _ in pickletools.genops(file):
        if operation.name == "GLOBAL" and not STATE_DICT_NAMES.fullmatch(str(argument)):
            raise pickle.UnpicklingError(str(argument))
        if operation.name in NUMBERING and isinstance(argument, int) and argument > size:
            raise ValueError("it numbers more values than it holds")
        stack.follow(operation, argument)


class _Stack:
    """Follows a pickle's stack, to refuse what no state dict has and what would take time that grows with its square.

    Of each value it knows whether it can be the key of a mapping: a text or a small number, which are hashed at once.
    """

    def __init__(self) -> None:
        # The marks that the pickle sets are None.
        self._values: list[bool | None] = []
        self._known: dict[object, bool] = {}
        self._attributes = 0

    def follow(self, operation: pickletools.OpcodeInfo, argument: object) -> None:
        """Follow an operation; raises UnpicklingError if no state dict has it."""
        name = operation.name
        if name not in PERMITTED:
            raise pickle.UnpicklingError(name)
        if name in NUMBERING:
            self._known[argument] = bool(self._values[-1])
            return
        if name == "MARK":
            self._values.append(None)
            return
        taken = self._take(operation.stack_before)
        # The last one first.
        keys = taken[1::2] if name == "SETITEMS" else taken[1:2] if name == "SETITEM" else []
        self._attributes += name == "BUILD"
        if not all(keys) or self._attributes > MOST_ATTRIBUTES or (name == "TUPLE" and len(taken) > LONGEST_TUPLE):
            raise pickle.UnpicklingError(name)
        is_key = self._known.get(argument, False) if name in REFERRING else name in KEYS
        self._values += [is_key] * len(operation.stack_after)

    def _take(self, kinds: Sequence[pickletools.StackObject]) -> list[bool]:
        """Take what an operation takes from the stack: so many values, or all down to the last mark and some below."""
        taken = []
        if pickletools.markobject in kinds:
            while (value := self._values.pop()) is not None:
                taken.append(value)
            kinds = kinds[: kinds.index(pickletools.markobject)]
        taken += [bool(self._values.pop()) for _ in kinds]
        return taken


def _checked(file: IO[bytes], size: int) -> IO[bytes]:
    """Read the next pickle of a file and check it: see `_check_operations`; return a copy of it."""
    start = file.tell()
    _check_operations(file, size)
    end = file.tell()
    file.seek(start)
    return BytesIO(file.read(end - start))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Return a short hash of named tensors, to distinguish the weights of different models."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]
