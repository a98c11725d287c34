"""Tensor files: what is read, what is refused with one message, and that no code in them is ever run."""

import contextlib
import json
import os
import pickle
import pickletools
import signal
import stat
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lr2ppo.errors import UserError
from lr2ppo.files import (
    atomic_folder,
    check_inside,
    check_no_links,
    check_output,
    check_regular,
    open_to_append,
    parse_json,
    read_json,
    remove_partial_files,
    write_json,
)
from lr2ppo.tensors import check_tensors, read_tensors, write_tensors
from tests.conftest import REPOSITORY

TENSORS = {"weight": torch.arange(12.0).reshape(3, 4), "bias": torch.ones(3)}
suffixes = pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".pt"])


class Payload:
    """Creates a folder if it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, (str(self.folder),))


def message(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@suffixes
def test_what_is_written_is_read_by_content_with_any_file_name(tmp_path: Path, suffix: str) -> None:
    write_tensors(tmp_path / f"a{suffix}", TENSORS)
    (tmp_path / f"a{suffix}").rename(tmp_path / "unnamed")
    found = read_tensors(tmp_path / "unnamed")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


def test_the_format_before_zip_archives_is_read(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(read_tensors(tmp_path / "old.bin")["weight"], TENSORS["weight"])


@pytest.mark.parametrize("kind", ["zip", "before zip", "bare pickle"])
def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    content = TENSORS | {"more": Payload(tmp_path / "made")}
    if kind == "bare pickle":
        (tmp_path / "code.bin").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "code.bin", _use_new_zipfile_serialization=kind == "zip")
    assert "perhaps code, and none of it was run" in message(tmp_path / "code.bin")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("in_zip", [True, False])
@pytest.mark.parametrize(
    "tensors",
    [
        {"row": torch.zeros(1, 64).expand(10**9, 64)},
        {"half": torch.zeros(1, 1, dtype=torch.float16).expand(60_000, 60_000)},
        {"meta": torch.empty(10**9, device="meta")},
        {str(number): torch.zeros(9_000).expand(9, 9_000) for number in range(9)},
        dict.fromkeys("abcdef", torch.zeros(9_000)),
    ],
)
def test_tensors_larger_than_their_file_are_refused(tmp_path: Path, tensors: dict[str, Tensor], in_zip: bool) -> None:
    torch.save(tensors, tmp_path / "large.bin", _use_new_zipfile_serialization=in_zip)
    assert any(part in message(tmp_path / "large.bin") for part in ("that stand for tensors of", "more than tensors"))


def test_tied_weights_are_read(tmp_path: Path) -> None:
    tied = torch.zeros(1000, 8)
    torch.save({"words": tied, "head": tied.T, "half": torch.zeros(9).half()}, tmp_path / "tied.bin")
    assert read_tensors(tmp_path / "tied.bin").keys() == {"words", "head", "half"}


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    torch.save({"zeros": torch.zeros(10**6)}, tmp_path / "plain.bin")
    with ZipFile(tmp_path / "plain.bin") as plain, ZipFile(tmp_path / "small.bin", "w", ZIP_DEFLATED) as small:
        for entry in plain.infolist():
            small.writestr(entry.filename, plain.read(entry))
    assert "its parts are compressed" in message(tmp_path / "small.bin")


def test_an_archive_that_is_another_for_torch_is_refused(tmp_path: Path) -> None:
    archives = []
    for size in (1000, 10):
        torch.save({"zeros": torch.zeros(size)}, tmp_path / "plain.bin")
        with ZipFile(tmp_path / "plain.bin") as plain, ZipFile(tmp_path / "small.bin", "w", ZIP_STORED) as small:
            for entry in plain.infolist():
                small.writestr(entry.filename, plain.read(entry))
        read_tensors(tmp_path / "small.bin")
        archives.append((tmp_path / "small.bin").read_bytes())
    (tmp_path / "two.bin").write_bytes(b"".join(archives))
    assert "its directory is not where torch looks for it" in message(tmp_path / "two.bin")


def rewrite_archive(path: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Write an archive of torch.save again, with other contents of its parts."""
    with ZipFile(path) as archive:
        parts = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(name, content))


def test_an_archive_that_lacks_numbers_is_refused_before_torch_reads_beyond_it(tmp_path: Path) -> None:
    path = tmp_path / "short.bin"
    torch.save({"first": torch.zeros(1000), "second": torch.zeros(1000).half(), "words": torch.zeros(9).long()}, path)
    rewrite_archive(path, lambda name, content: content)
    assert read_tensors(path).keys() == {"first", "second", "words"}
    rewrite_archive(path, lambda name, content: content[:4] if name.endswith("/data/1") else content)
    assert "found 4 bytes of storage 1, wanted 2,000" in message(path)


def test_an_old_file_that_lists_no_storage_is_refused_before_torch_leaves_it_unread(tmp_path: Path) -> None:
    path = tmp_path / "old.bin"
    torch.save({"first": torch.zeros(1000), "second": torch.zeros(9)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    file = BytesIO(content)
    for _ in range(4):
        list(pickletools.genops(file))
    start = file.tell()
    keys = [argument for operation, argument, _ in pickletools.genops(file) if operation.name == "BINUNICODE"]
    assert len(keys) == 2
    path.write_bytes(content[:start] + pickle.dumps(keys[:1], protocol=2) + content[file.tell() :])
    assert "its list of storages is not that of its tensors" in message(path)


def test_a_pickle_that_numbers_more_values_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "memo.bin"
    torch.save(TENSORS, path)
    # None, its number 2 ** 31, and no further use of it.
    large = b"Nr" + (2**31).to_bytes(4, "little") + b"0"
    rewrite_archive(path, lambda name, content: content[:2] + large + content[2:] if "data.pkl" in name else content)
    assert "it numbers more values than it holds" in message(path)


def test_lists_of_lists_are_no_keys_of_an_old_file(tmp_path: Path) -> None:
    """Two that are equal take for ever to compare."""
    path = tmp_path / "old.bin"
    torch.save({"first": torch.zeros(9)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    file = BytesIO(content)
    for _ in range(4):
        list(pickletools.genops(file))
    nests = b"".join(
        b"]" + b"".join(bytes([*b"q", n, *b"](h", n, *b"h", n, *b"e"]) for n in range(first, first + 60))
        for first in (1, 100)
    )
    start = file.tell()
    list(pickletools.genops(file))
    path.write_bytes(content[:start] + b"\x80\x02](" + nests + b"e." + content[file.tell() :])
    assert "its list of storages is not that of its tensors" in message(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("again", ["archive/data.pkl", "archive/data.pkl\0", "archive/DATA.pkl"])
def test_an_archive_with_two_parts_of_one_name_is_refused(tmp_path: Path, again: str) -> None:
    path = tmp_path / "twice.bin"
    torch.save(TENSORS, path)
    rewrite_archive(path, lambda name, content: content)
    with ZipFile(path, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        same_or_not = name.replace("data.pkl", again.partition("/")[2])
        archive.writestr(same_or_not.replace("\0", "_"), archive.read(name))
    if "\0" in again:
        # What Python takes for the end of the name.
        path.write_bytes(path.read_bytes().replace(f"{name}_".encode(), f"{name}\0".encode()))
    assert "names that can be read in two ways" in message(path)


MAPPING, ORDERED = b"}q\x00", b"ccollections\nOrderedDict\nq\x01"
HANGING = {
    # A key of twice the one before, 60 times.
    "tuple": MAPPING + b"K\x01\x85" + b"".join(bytes([*b"q", n, *b"h", n, 0x86]) for n in range(100, 160)) + b"Ns.",
    # Between them, an operation that changes nothing.
    "tuple, built": MAPPING
    + b"K\x01\x85"
    + b"".join(bytes([*b"q", n, *b"h", n, 0x86, *b"Nb"]) for n in range(100, 160))
    + b"Ns.",
    "mapping, copied": MAPPING
    + b"("
    + b"".join(b"M" + n.to_bytes(2, "little") + b"N" for n in range(5000))
    + b"uq\x02"
    + ORDERED
    + b"h\x01h\x02\x85R" * 30000
    + b".",
    "mapping, updated": MAPPING
    + b"("
    + b"".join(b"X\x02\0\0\0" + b"%02x" % n + b"N" for n in range(256))
    + b"uq\x02"
    + ORDERED
    + b")R"
    + b"h\x02b" * 10000
    + b".",
    "number": MAPPING + b"\x8b\xff\xff\x00\x00" + b"\x7f" * 65535 + b"q\x02Ns" + b"h\x02Ns" * 100000 + b".",
    "equal hashes": MAPPING
    + b"".join(b"\x8a\x0a" + (1 + n * (2**61 - 1)).to_bytes(10, "little") + b"Ns" for n in range(50000))
    + b".",
    "long tuple": MAPPING
    + b"("
    + b"N" * 10000
    + b"tq\x02"
    + b"ctorch._utils\n_rebuild_tensor\nq\x03"
    + b"h\x03h\x02R" * 10000
    + b".",
}


@pytest.mark.parametrize("in_zip", [True, False])
@pytest.mark.parametrize("kind", HANGING)
def test_a_small_pickle_that_takes_for_ever_to_read_is_refused(tmp_path: Path, kind: str, in_zip: bool) -> None:
    path, pickled = tmp_path / "small.bin", b"\x80\x02" + HANGING[kind]
    torch.save(TENSORS, path, _use_new_zipfile_serialization=in_zip)
    if in_zip:
        rewrite_archive(path, lambda name, content: pickled if "data.pkl" in name else content)
    else:
        head = b"".join(pickle.dumps(number, protocol=2) for number in (0x1950A86A20F9469CFC6C, 1001, 0))
        path.write_bytes(head + pickled + pickle.dumps([], protocol=2))
    assert "holds more than tensors" in message(path)


@pytest.mark.parametrize("name", ["items", "values", "keys"])
def test_attributes_that_a_file_gives_its_mapping_hide_no_tensor(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hidden.bin"
    torch.save(OrderedDict(large=torch.zeros(()).expand(10**6)), path)
    assert "that stand for tensors of 4,000,000" in message(path)
    attribute = b"}X" + len(name).to_bytes(4, "little") + name.encode() + b"ccollections\nOrderedDict\nsb."
    rewrite_archive(path, lambda part, content: content[:-1] + attribute if "data.pkl" in part else content)
    assert "that stand for tensors of 4,000,000" in message(path)


class Zeros:
    """Becomes a number of zero bytes if it is unpickled, which torch permits."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return (bytearray, (10**6,))


@pytest.mark.parametrize("in_zip", [True, False])
def test_calls_that_make_no_tensor_are_refused(tmp_path: Path, in_zip: bool) -> None:
    torch.save(TENSORS | {"zeros": Zeros()}, tmp_path / "call.bin", _use_new_zipfile_serialization=in_zip)
    assert "holds more than tensors" in message(tmp_path / "call.bin")


@suffixes
@pytest.mark.parametrize("kept", [0, 5, 60, -40, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"cut{suffix}"
    write_tensors(path, TENSORS)
    path.write_bytes(path.read_bytes()[:kept])
    refusal = message(path)
    assert "copy it again" in refusal or "is neither a safetensors file nor one saved with torch.save" in refusal


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from([".safetensors", ".bin"]))
def test_a_file_with_damaged_bytes_is_read_or_refused_but_breaks_nothing(
    tmp_path: Path, data: st.DataObject, suffix: str
) -> None:
    path = tmp_path / f"damaged{suffix}"
    write_tensors(path, TENSORS)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=20)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(UserError):
        read_tensors(path)


def test_other_content_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.bin").write_text("not weights at all\n" * 9, encoding="utf-8")
    assert "is neither a safetensors file nor" in message(tmp_path / "text.bin")
    assert "found no such file" in message(tmp_path / "gone.bin")
    assert "found a folder" in message(tmp_path)
    for content, expected in (
        ([TENSORS], "found list"),
        ({}, "found an empty dict"),
        ({"state_dict": TENSORS, "epoch": 3}, "found state_dict, epoch, which are not tensors"),
    ):
        torch.save(content, tmp_path / "other.bin")
        assert expected in message(tmp_path / "other.bin")


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.tensor([1.0, float("nan"), 2.0]), "weight: holds numbers that are not finite"),
        (torch.tensor([1.0, -float("inf"), 2.0]).bfloat16(), "weight: holds numbers that are not finite"),
        (torch.ones(3).to_sparse(), "weight: found torch.sparse_coo on cpu, wanted a plain tensor"),
        (torch.ones(3, device="meta"), "weight: found torch.strided on meta, wanted a plain tensor"),
        (torch.ones(3, dtype=torch.int64), "weight: found torch.int64"),
    ],
)
def test_tensors_that_are_no_finite_numbers_are_refused(tmp_path: Path, tensor: torch.Tensor, expected: str) -> None:
    with pytest.raises(UserError) as refused:
        check_tensors({"weight": torch.Size([3])}, {"weight": tensor}, tmp_path)
    assert expected in str(refused.value)


def test_finite_tensors_of_any_width_fit(tmp_path: Path) -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        check_tensors({"weight": torch.Size([3])}, {"weight": torch.ones(3).to(dtype)}, tmp_path)
    check_tensors({"weight": torch.Size([0])}, {"weight": torch.ones(0)}, tmp_path)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", [1])
    write_tensors(tmp_path / "a.safetensors", TENSORS)
    before = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {1, 2})
    with pytest.raises(RuntimeError):
        # safetensors cannot hold two names for one storage.
        write_tensors(tmp_path / "a.safetensors", {"a": TENSORS["bias"], "b": TENSORS["bias"]})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.safetensors"]
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "[\n 1\n]\n"
    assert (tmp_path / "a.safetensors").read_bytes() == before


@pytest.fixture(params=["pipe", "folder", "device"])
def no_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A path that is no regular file."""
    path = tmp_path / "path"
    if request.param == "pipe":
        os.mkfifo(path)
    elif request.param == "folder":
        path.mkdir()
    else:
        try:
            # A null device, not the machine's own.
            os.mknod(path, stat.S_IFCHR | 0o666, os.stat(os.devnull).st_rdev)
        except PermissionError:
            pytest.skip("only root makes devices")
    return path


@pytest.mark.parametrize("linked", [False, True])
def test_what_is_no_regular_file_is_neither_read_nor_replaced(no_file: Path, linked: bool) -> None:
    if linked:
        no_file = no_file.rename(no_file.with_name("target"))
        no_file.with_name("link").symlink_to("target")
        no_file = no_file.with_name("link")
    before = no_file.stat()
    with pytest.raises(UserError, match=f"{no_file}.*wanted a regular file"):
        write_json(no_file, [1])
    with pytest.raises(OSError, match="wanted a regular file"):
        # Without a reader or writer, a pipe would be waited for.
        read_json(no_file)
    with pytest.raises(OSError, match="wanted a regular file"):
        check_regular(no_file)
    assert (no_file.stat().st_ino, no_file.stat().st_mode) == (before.st_ino, before.st_mode)
    assert not list(no_file.parent.glob(".*"))


def test_of_a_link_that_a_user_typed_the_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    for value in (1, 2):
        write_json(check_output(tmp_path / "link"), value)
        assert (tmp_path / "link").is_symlink()
        assert read_json(tmp_path / "target") == value


@pytest.mark.parametrize("target", ["victim", "gone"])
def test_a_link_inside_a_folder_is_not_written_through(tmp_path: Path, target: str) -> None:
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "own").mkdir()
    link = tmp_path / "own" / "file"
    link.symlink_to(f"../{target}")
    writers: list[Callable[[Path], object]] = [lambda path: write_json(path, 1), open_to_append, check_inside]
    for write in writers:
        with pytest.raises(UserError, match=f"^{link}: .*a link, which may lead out of its folder"):
            write(link)
    with pytest.raises(UserError, match=f"1 fault found; .*\n  file: is a link to ../{target}$"):
        check_no_links(tmp_path / "own")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["own", "victim"]


def test_a_folder_that_is_a_link_itself_is_written_into(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    check_no_links(tmp_path / "run")
    write_json(tmp_path / "run" / "a.json", 1)
    with open_to_append(tmp_path / "run" / "log") as log:
        log.write("line")
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["a.json", "log"]


def test_a_folder_is_not_replaced_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "file").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("victim")
    with pytest.raises(UserError, match="link: is a link to victim"), atomic_folder(tmp_path / "link", replaces=True):
        pass
    assert (tmp_path / "victim" / "file").read_bytes() == b"precious"


def test_a_folder_that_another_process_writes_is_refused_and_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with atomic_folder(out) as folder:
        (folder / "first").touch()
        with pytest.raises(UserError, match="out: another process is writing it"), atomic_folder(out):
            pass
        # Of one name for most of its length.
        with atomic_folder(tmp_path / f"{'long' * 40}-1") as one, atomic_folder(tmp_path / f"{'long' * 40}-2") as two:
            (one / "1").touch()
            (two / "2").touch()
    assert [path.name for path in out.iterdir()] == ["first"]
    assert sorted(path.name for path in tmp_path.glob("long*/*")) == ["1", "2"]
    assert len(list(tmp_path.iterdir())) == 3


def test_what_a_killed_process_left_of_a_folder_is_removed_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WRITING_A_FOLDER, str(tmp_path / "out")]
    assert subprocess.run(command, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}).returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "half").exists()
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "mine").touch()
    with atomic_folder(tmp_path / "out") as folder:
        (folder / "whole").touch()
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "out/whole",
        ".out.partial/mine",
    }
    assert not left.exists()


@pytest.mark.parametrize("name", ["a" * 300, "loop", "file/inside"])
def test_a_path_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=name):
        write_json(tmp_path / name, 1)


def test_a_file_has_the_rights_that_its_user_gives_and_keeps_those_it_has(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_json(tmp_path / "private", 1)
        write_tensors(tmp_path / "weights.safetensors", TENSORS)
    finally:
        os.umask(before)
    write_json(tmp_path / "shown", 1)
    (tmp_path / "shown").chmod(0o640)
    for name in ("private", "shown"):
        write_json(tmp_path / name, 2)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"private": 0o600, "weights.safetensors": 0o600, "shown": 0o640}


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path: Path) -> None:
    write_json(tmp_path / ("a" * 255), 1)
    assert read_json(tmp_path / ("a" * 255)) == 1


def test_json_may_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json") == [1]


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "best").mkdir()
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_WRITING, str(tmp_path / "best" / "model.safetensors")], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "best").iterdir()
    for kept in ("model.safetensors", ".hidden", "notes.partial"):
        (tmp_path / "best" / kept).touch()
    remove_partial_files(tmp_path)
    assert not left.exists()
    assert sorted(path.name for path in (tmp_path / "best").iterdir()) == [
        ".hidden",
        "model.safetensors",
        "notes.partial",
    ]


KILLED_WRITING_A_FOLDER = """
import os, signal, sys
from pathlib import Path
from lr2ppo.files import atomic_folder
with atomic_folder(Path(sys.argv[1])) as folder:
    (folder / "half").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
KILLED_WRITING = """
import os, signal, sys
from pathlib import Path
from lr2ppo.files import write_atomically
write_atomically(Path(sys.argv[1]), lambda partial: os.kill(os.getpid(), signal.SIGKILL))
"""


@given(st.dictionaries(st.text(max_size=2), st.integers()), st.booleans())
def test_json_is_read_unless_a_key_is_given_twice(value: dict[str, int], twice: bool) -> None:
    text = json.dumps(value)
    if twice and value:
        again = json.dumps(next(iter(value)))
        with pytest.raises(ValueError, match="twice in one object, wanted it once"):
            parse_json(f"[{text[:-1]}, {again}: 1}}]")
    else:
        assert parse_json(text) == value
