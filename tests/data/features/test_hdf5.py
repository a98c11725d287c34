"""A feature file that leads to other files, pipes or devices is refused before anything of them is read."""

import os
import pickle
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray

from lr2ppo.data import FeatureStore, FeatureWriter
from lr2ppo.data.features.names import LONGEST_ID
from lr2ppo.data.features.writer import read_clip_names
from lr2ppo.errors import UserError
from tests.helpers.fuzz import run_apart

METADATA: dict[str, str | int] = {"text_encoder": "tiny@1", "tokens_per_frame": 1}
TEXT, IMAGE = (2, 3, 4), (1, 2, 6)
CLIPS = ("tt01/shot-1", "tt02")
SECONDS = 20


def write_features(path: Path, *clip_ids: str) -> Path:
    with FeatureWriter(path, METADATA) as writer:
        for clip_id in clip_ids:
            writer.write(clip_id, [np.ones(TEXT[1:], np.float32)] * 2, np.ones(IMAGE[1:], np.float32), [(0, 1)] * 2)
    return path


def read_all(path: Path) -> None:
    """Read every clip as a stage does."""
    store = FeatureStore([path])
    for clip_id in CLIPS:
        store.shape(clip_id)
        store.text(clip_id, [0, 1])
        store.label_spans(clip_id, np.arange(2), np.full(2, 3))
        store.frames(clip_id)


def ends(check: Callable[[], object]) -> None:
    """Run a check in another process, which is killed if it hangs."""
    run_apart(check, SECONDS)


DOORS: dict[str, Callable[[Path], object]] = {
    "store": read_all,
    "extraction": lambda path: read_clip_names(path, METADATA, "float32"),
    "writer": lambda path: FeatureWriter(path, METADATA),
}


def change_bytes(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))


def store_outside(path: Path, source: Path, name: str) -> None:
    """Replace an array by one whose numbers are the bytes of another file."""
    with h5py.File(path, "a") as file:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        size = int(np.prod(shape)) * dtype.itemsize
        file.create_dataset(name, shape, dtype, external=[(str(source), 0, size)])


def store_virtually(path: Path, source: Path, name: str, unlimited: bool = False) -> None:
    """Replace an array by a virtual one."""
    with h5py.File(path, "a") as file:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        most = (None, *shape[1:]) if unlimited else shape
        layout = h5py.VirtualLayout(shape, dtype, maxshape=most)
        whole = h5py.VirtualSource(source, "numbers", shape, dtype, maxshape=most)
        layout[: h5py.h5s.UNLIMITED if unlimited else shape[0]] = whole[: h5py.h5s.UNLIMITED] if unlimited else whole
        file.create_virtual_dataset(name, layout)


def virtual_of_nothing(path: Path, pipe: Path) -> None:
    """Replace an array by a virtual one without sources, which HDF5 reads as zeros."""
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    # Not every version of h5py makes such an array by itself.
    created.set_layout(h5py.h5d.VIRTUAL)
    with h5py.File(path, "a") as file:
        group = file["tt01/shot-1"]
        del group["img_emb"]
        h5py.h5d.create(group.id, b"img_emb", h5py.h5t.NATIVE_FLOAT, h5py.h5s.create_simple(IMAGE), created)


def link(path: Path, name: str, target: h5py.SoftLink | h5py.ExternalLink) -> None:
    with h5py.File(path, "a") as file:
        if file.get(name) is not None:
            del file[name]
        file[name] = target


def link_outside(path: Path, target: Path, name: str) -> None:
    link(path, name, h5py.ExternalLink(str(target), "/x"))


def link_of_another_class(path: Path, pipe: Path) -> None:
    """Plant a link of a class that HDF5 lets programs define."""
    link_outside(path, pipe, "planted")
    # In the file: the class, which is 64 for external links, and the name with its length.
    change_bytes(path, b"\x40\x07planted", b"\x41\x07planted")


def link_named_as_a_path(path: Path, pipe: Path) -> None:
    """Plant a link with a slash in its name, which leads through another one."""
    with h5py.File(path, "a") as file:
        file["tt02/outXin"] = file["tt01"]
    change_bytes(path, b"outXin", b"out/in")


def soft_through_external(path: Path, pipe: Path) -> None:
    link_outside(path, pipe, "tt01/shot-1/z")
    link(path, "tt01/shot-1/img_emb", h5py.SoftLink("/tt01/shot-1/z/x"))


def another_array(path: Path, pipe: Path) -> None:
    with h5py.File(path, "a") as file:
        file.create_dataset("more", (2,), "f4", external=[(str(pipe), 0, 8)])


PLACE = "tt01/shot-1"
ARRAYS = ("text_emb", "img_emb", "text_len", "label_span")
TRICKS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    **{f"{part} stored outside": (partial(store_outside, name=f"{PLACE}/{part}"), part) for part in ARRAYS},
    **{f"{part} virtual": (partial(store_virtually, name=f"{PLACE}/{part}"), part) for part in ARRAYS},
    **{f"{part} linked": (partial(link_outside, name=f"{PLACE}/{part}"), part) for part in ARRAYS},
    "virtual, of any length": (partial(store_virtually, name=f"{PLACE}/text_emb", unlimited=True), "text_emb"),
    "virtual, of this file": (lambda path, _: store_virtually(path, Path("."), f"{PLACE}/text_emb"), "text_emb"),
    "virtual, of nothing": (virtual_of_nothing, "img_emb"),
    "clip linked": (partial(link_outside, name=PLACE), "shot-1"),
    "movie linked": (partial(link_outside, name="tt01"), "tt01"),
    "another link": (partial(link_outside, name="planted"), "planted"),
    "another array": (another_array, "more"),
    "soft link": (lambda path, _: link(path, f"{PLACE}/text_emb", h5py.SoftLink("/tt02/text_emb")), "text_emb"),
    "soft link to a clip": (lambda path, _: link(path, "alias", h5py.SoftLink("/tt02")), "alias"),
    "soft link through another": (soft_through_external, PLACE),
    "link of another class": (link_of_another_class, "planted"),
    "link named as a path": (link_named_as_a_path, "out/in"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("trick", TRICKS)
def test_what_leads_out_of_a_file_is_refused_by_its_name(tmp_path: Path, trick: str, door: str) -> None:
    # Nobody writes to the pipe: opening it for reading would wait for ever.
    os.mkfifo(pipe := tmp_path / "pipe")
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    change, place = TRICKS[trick]
    change(path, pipe)
    before = path.read_bytes()

    def check() -> None:
        with pytest.raises(UserError, match=f"feat.h5: '.*{place}.*': found .*, wanted .*; ") as refused:
            DOORS[door](path)
        assert len(str(refused.value)) < 500

    ends(check)
    assert path.read_bytes() == before


@pytest.mark.parametrize("layout", ["contiguous", "compact"])
def test_numbers_of_another_file_do_not_come_back_as_features(tmp_path: Path, layout: str) -> None:
    (tmp_path / "secret").write_bytes(np.ones(2, np.float32).tobytes())
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    with h5py.File(path, "a") as file:
        del file["tt02/img_emb"]
        file["tt02/img_emb"] = np.zeros((1, 1, 2), np.float32)
    store_outside(path, tmp_path / "secret", "tt02/img_emb")
    if layout == "compact":
        # HDF5 writes no such file: the numbers are in the array's header and in another file.
        change_bytes(
            path,
            b"\x03\x01" + b"\xff" * 8 + b"\x08" + bytes(7),
            b"\x03\x00\x08\x00" + b"\x00\x00\x80\x3f" * 2 + bytes(6),
        )
    with pytest.raises(UserError, match="tt02/img_emb': found an array whose numbers are in other files"):
        read_all(path)


def test_a_file_that_changes_after_it_was_listed_is_still_not_left(tmp_path: Path) -> None:
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    other = write_features(tmp_path / "other.h5", "x")
    saved = pickle.dumps(FeatureStore([path]))
    link(path, "tt02", h5py.ExternalLink(str(other), "/x"))
    store_outside(path, other, "tt01/shot-1/text_emb")
    store: FeatureStore = pickle.loads(saved)  # noqa: S301
    for read in (store.frames, store.shape, lambda clip_id: store.text(clip_id, [0])):
        for clip_id in ("tt02", "tt01/shot-1"):
            with pytest.raises(UserError, match=r"feat\.h5: changed while it was in use"):
                read(clip_id)


def test_a_later_file_of_a_store_is_refused_too(tmp_path: Path) -> None:
    first, second = (write_features(tmp_path / f"{name}.h5", name) for name in ("a", "b"))
    link(second, "c", h5py.ExternalLink(str(first), "/a"))
    with pytest.raises(UserError, match="'c': found a link to another file"):
        FeatureStore([first, second])


def test_references_in_attributes_are_not_followed(tmp_path: Path) -> None:
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    with h5py.File(path, "a") as file:
        file.attrs["more"], file["tt02"].attrs["dtype"] = file["tt01"].ref, file["tt01"].ref
    read_all(path)
    with h5py.File(path, "a") as file:
        file.attrs["tokens_per_frame"] = file["tt01"].ref
    with pytest.raises(UserError, match="attribute tokens_per_frame: found object"):
        FeatureStore([path])


def make_link_to_pipe(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


NOT_REGULAR: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "is a named pipe, wanted a regular file"),
    "folder": (lambda path: path.mkdir(), "is a folder, wanted a regular file"),
    "link to a pipe": (make_link_to_pipe, "is a named pipe"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device, wanted a regular file"),
    "link to itself": (lambda path: path.symlink_to(path.name), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", NOT_REGULAR)
def test_what_is_no_regular_file_is_refused(tmp_path: Path, kind: str, door: str) -> None:
    make, found = NOT_REGULAR[kind]
    make(tmp_path / "feat.h5")

    def check() -> None:
        with pytest.raises(UserError, match=f"feat.h5: .*{found}"):
            DOORS[door](tmp_path / "feat.h5")

    ends(check)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", ["n" * 300, "file/feat.h5", "a\0b"])
def test_a_path_that_cannot_be_is_refused(tmp_path: Path, name: str, door: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError):
        DOORS[door](tmp_path / name)


def test_groups_of_many_names_are_listed_in_time_proportional_to_their_links(tmp_path: Path) -> None:
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    with h5py.File(path, "a") as file:
        above = file.create_group("all")
        for _ in range(28):
            inner = above.create_group("a")
            above["b"], above = inner, inner
        above["tt02"], above["up"] = file["tt02"], file["all"]
        nested = "/".join(["all", *"a" * 28])

    def check() -> None:
        # A clip of several names has each of them.
        assert read_clip_names(path, METADATA, "float32") == {*CLIPS, f"{nested}/tt02"}
        store = FeatureStore([path])
        assert f"{nested}/tt02" in store
        read_all(path)

    ends(check)


def test_groups_nested_deeper_than_any_id_are_refused_with_a_short_message(tmp_path: Path) -> None:
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    with h5py.File(path, "a") as file:
        group = file.id
        for _ in range(10_000):
            group = h5py.h5g.create(group, b"g")
    with pytest.raises(
        UserError, match=f"'g/g/.*': found a group's name of .*, wanted at most {LONGEST_ID:,}"
    ) as refused:
        FeatureStore([path])
    assert len(str(refused.value)) < 600


IDS = ["a//b", "a/./b", "/a", "a/", "./a", "a/.", ".", "/", "", " ", "\u2003", "a\0b", "a\nb", "\x85", "\ud800",
       "tt02/img_emb", "text_len/a", "label_span", "i" * (LONGEST_ID + 1), "i" * 2**20]  # fmt: skip


@pytest.mark.parametrize("clip_id", IDS)
def test_an_id_that_names_no_group_of_its_own_is_not_written(tmp_path: Path, clip_id: str) -> None:
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    with pytest.raises(UserError, match=r"feat.h5: id of a clip: found .*, wanted ") as refused:
        write_features(path, clip_id)
    assert len(str(refused.value)) < 300
    assert clip_id not in FeatureStore([path])
    assert read_clip_names(path, METADATA, "float32") == set(CLIPS)


def test_an_id_as_long_as_may_be_is_written_and_read(tmp_path: Path) -> None:
    longest = ["日" * LONGEST_ID, "/".join(["é"] * (LONGEST_ID // 2))]
    store = FeatureStore([write_features(tmp_path / "feat.h5", *longest)])
    assert all(store.frames(clip_id).shape == (2, 1, 6) for clip_id in longest)


def test_a_clip_in_whose_place_is_an_array_is_not_written(tmp_path: Path) -> None:
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    with h5py.File(path, "a") as file:
        file["flat"] = np.ones(3)
    with pytest.raises(UserError, match=r"feat.h5: cannot hold clip flat/a: .*; free space .* or remove it"):
        write_features(path, "flat/a")


def add_chunk(path: Path, part: str, chunk: tuple[int, ...], stored: bytes, *filters: str) -> None:
    """Replace an array of a clip by one with this chunk at its start."""
    with h5py.File(path, "a") as file:
        group = file[PLACE]
        shape, dtype = group[part].shape, group[part].id.get_type()
        del group[part]
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk(chunk)
        for name in filters:
            {"deflate": partial(created.set_deflate, 9), "fletcher32": created.set_fletcher32}[name]()
        space = h5py.h5s.create_simple(shape, (h5py.h5s.UNLIMITED,) * len(shape))
        array = h5py.h5d.create(group.id, part.encode(), dtype, space, created)
        try:
            array.write_direct_chunk((0,) * len(shape), stored)
        except OSError as error:
            if "chunk size can't be encoded" not in str(error):
                raise
            pytest.skip("this version of HDF5 cannot write such a chunk")


def change_array(path: Path, part: str, numbers: NDArray[Any], **options: Any) -> None:
    with h5py.File(path, "a") as file:
        del file[PLACE][part]
        file[PLACE].create_dataset(part, data=numbers, **options)


def deflated_zeros(size: int) -> bytes:
    stream, block = zlib.compressobj(9), bytes(2**20)
    return b"".join([*(stream.compress(block) for _ in range(size // len(block))), stream.flush()])


SHAPES = {"text_emb": TEXT, "img_emb": IMAGE, "text_len": TEXT[:1], "label_span": (2, 2)}
LONG_STREAM = deflated_zeros(2**28 + 2**26)
# By name: the chunk as it is declared (None: as the array), what is stored, and the filters.
BOMBS: dict[str, tuple[int | None, bytes, tuple[str, ...]]] = {
    "deflate twice": (None, zlib.compress(LONG_STREAM, 9), ("deflate", "deflate")),
    "an endless stream": (None, LONG_STREAM, ("deflate",)),
    "a chunk beyond the array": (2**28, zlib.compress(b"", 9), ("deflate",)),
    "a chunk cut short": (None, b"1", ()),
    "checksums before compression": (None, zlib.compress(bytes(8), 9), ("fletcher32", "deflate")),
}


@pytest.mark.parametrize("part", ARRAYS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_an_array_that_would_take_far_more_memory_than_its_numbers_is_refused(
    tmp_path: Path, bomb: str, part: str
) -> None:
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    wide, stored, filters = BOMBS[bomb]
    shape = SHAPES[part]
    add_chunk(path, part, shape if wide is None else (wide, *(1,) * (len(shape) - 1)), stored, *filters)
    for read in (DOORS["store"], DOORS["extraction"]):
        with pytest.raises(UserError, match=f"feat.h5: '.*{part}': found .*, wanted .*; store it without chunks"):
            read(path)


def test_a_large_chunk_that_holds_more_than_the_array_is_refused_and_the_array_itself_is_read(tmp_path: Path) -> None:
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    shape = (1, 2**14, 8)
    numbers = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    change_array(path, "img_emb", numbers, chunks=shape, compression="gzip", compression_opts=1)
    np.testing.assert_array_equal(FeatureStore([path]).frames(PLACE)[:, 0], numbers[0])
    with h5py.File(path, "a") as file:
        file[PLACE]["img_emb"].id.write_direct_chunk((0, 0, 0), LONG_STREAM)
    with pytest.raises(UserError, match=r"found a chunk of .* bytes that may become more"):
        FeatureStore([path])


@pytest.mark.parametrize("part", ARRAYS)
@pytest.mark.parametrize("compression", [None, "gzip", "lzf"])
@pytest.mark.parametrize("more", [{}, {"shuffle": True, "fletcher32": True}, {"maxshape": True}])
def test_compressed_arrays_of_h5py_are_read(
    tmp_path: Path, part: str, compression: str | None, more: dict[str, bool]
) -> None:
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    with h5py.File(path) as file:
        numbers = file[PLACE][part][()]
    options = {"maxshape": (None,) * numbers.ndim} if "maxshape" in more else more
    change_array(path, part, numbers, chunks=True, compression=compression, **options)
    read_all(path)
    read_clip_names(path, METADATA, "float32")


def test_a_compressed_array_of_zeros_as_large_as_memory_is_a_fault_of_its_clip(tmp_path: Path) -> None:
    path = write_features(tmp_path / "feat.h5", *CLIPS)
    rows, stored = 2**15, zlib.compress(bytes(2**20))
    with h5py.File(path, "a") as file:
        del file[PLACE]["img_emb"]
        size = (1, 2**28 // 32 + rows, 8)
        array = file[PLACE].create_dataset("img_emb", size, "f4", chunks=(1, rows, 8), compression="gzip")
        for row in range(0, size[1], rows):
            array.id.write_direct_chunk((0, row, 0), stored)
    with pytest.raises(ValueError, match=r"img_emb: found a compressed array of .* bytes, wanted at most"):
        FeatureStore([path]).shape(PLACE)
