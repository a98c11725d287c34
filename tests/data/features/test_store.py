"""The feature store: what is written is read, from our files and from the published ones."""

import functools
import pickle
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lr2ppo.data.features.store import MAX_OPEN_FILES, FeatureStore, find_feature_files
from lr2ppo.data.features.writer import FeatureWriter, StoredType, read_clip_names, remove_clips
from lr2ppo.errors import UserError

Array = NDArray[np.float32]
TEXT_WIDTH, IMAGE_WIDTH = 3, 5
METADATA: dict[str, str | int] = {"text_encoder": "tiny@1", "tokens_per_frame": 1}


def draw_features(
    lengths: Sequence[int], frames: int, seed: int, text_width: int = TEXT_WIDTH
) -> tuple[list[Array], Array]:
    rng = np.random.default_rng(seed)
    text = [rng.normal(size=(length, text_width)).astype(np.float32) for length in lengths]
    return text, rng.normal(size=(frames, IMAGE_WIDTH)).astype(np.float32)


def write_store(
    path: Path,
    clips: dict[str, tuple[list[Array], Array]],
    metadata: dict[str, str | int] = METADATA,
    dtype: StoredType = "float32",
) -> Path:
    with FeatureWriter(path, metadata, dtype) as writer:
        for clip_id, (text, frames) in clips.items():
            writer.write(clip_id, text, frames)
    return path


def assert_text(store: FeatureStore, clip_id: str, labels: Sequence[int], expected: Sequence[Array]) -> None:
    rows, lengths = store.text(clip_id, labels)
    assert rows.dtype == np.float32
    assert lengths.tolist() == [len(expected[label]) for label in labels]
    for row, length, label in zip(rows, lengths, labels, strict=True):
        np.testing.assert_array_equal(row[:length], expected[label])
        assert not row[length:].any()


names = st.text(st.sampled_from("abz019_-é "), min_size=1, max_size=6)
# The first part is the number of other parts, so that no id is a path prefix of another.
clip_ids = st.integers(0, 2).flatmap(
    lambda depth: st.lists(names, min_size=depth, max_size=depth).map(lambda parts: "/".join([str(depth), *parts]))
)


@settings(deadline=None, max_examples=25)
@given(
    shapes=st.dictionaries(
        clip_ids,
        st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any), st.integers(1, 4)),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
)
def test_what_is_written_is_read_for_any_labels_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, tuple[list[int], int]], data: st.DataObject
) -> None:
    clips = {
        clip_id: draw_features(lengths, frames, seed)
        for seed, (clip_id, (lengths, frames)) in enumerate(shapes.items())
    }
    store = FeatureStore([write_store(tmp_path_factory.mktemp("store") / "feat.h5", clips)])
    assert (store.text_width, store.image_width, store.tokens_per_frame) == (TEXT_WIDTH, IMAGE_WIDTH, 1)
    for clip_id, (text, frames) in clips.items():
        assert clip_id in store
        shape = store.shape(clip_id)
        assert (shape.labels, shape.tokens) == (len(text), max(len(tokens) for tokens in text))
        assert (shape.frames, shape.text_width, shape.image_width) == (len(frames), TEXT_WIDTH, IMAGE_WIDTH)
        assert_text(store, clip_id, range(len(text)), text)
        some = data.draw(st.lists(st.sampled_from(range(len(text))), min_size=1, unique=True))
        assert_text(store, clip_id, some, text)
        np.testing.assert_array_equal(store.frames(clip_id), frames[:, None])


def test_reading_some_labels_reads_no_more_tokens_than_they_have(tmp_path: Path) -> None:
    text, frames = draw_features([2, 9, 4], 1, seed=0)
    store = FeatureStore([write_store(tmp_path / "feat.h5", {"clip": (text, frames)})])
    assert store.text("clip", [2, 0])[0].shape == (2, 4, TEXT_WIDTH)
    assert store.text("clip", [0, 1, 2])[0].shape == (3, 9, TEXT_WIDTH)


def test_reading_a_label_reads_no_other_labels_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, frames = draw_features([7] * 50, 1, seed=0)
    store = FeatureStore([write_store(tmp_path / "feat.h5", {"clip": (text, frames)})])
    numbers_read = 0
    read = h5py.Dataset.__getitem__

    def counted(dataset: h5py.Dataset, *where: Any) -> Any:
        nonlocal numbers_read
        result = read(dataset, *where)
        numbers_read += result.size if dataset.name.endswith("text_emb") else 0
        return result

    monkeypatch.setattr(h5py.Dataset, "__getitem__", counted)
    assert_text(store, "clip", [31, 4], text)
    assert 0 < numbers_read <= 2 * 7 * TEXT_WIDTH


def test_tokens_of_a_frame_stay_together(tmp_path: Path) -> None:
    text, rows = draw_features([2], 12, seed=0)
    store = FeatureStore([write_store(tmp_path / "feat.h5", {"clip": (text, rows)}, {"tokens_per_frame": 4})])
    assert store.tokens_per_frame == 4
    np.testing.assert_array_equal(store.frames("clip"), rows.reshape(3, 4, IMAGE_WIDTH))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_the_published_layout_without_lengths_has_every_token(tmp_path: Path, kind: type[np.floating]) -> None:
    text = np.arange(2 * 4 * TEXT_WIDTH).reshape(2, 4, TEXT_WIDTH).astype(kind)
    frames = np.arange(6 * IMAGE_WIDTH).reshape(1, 6, IMAGE_WIDTH).astype(kind)
    with h5py.File(tmp_path / "clean_feat.h5", "w") as file:
        file["tt01/shot_0001/text_emb"], file["tt01/shot_0001/img_emb"] = text, frames
    store = FeatureStore([tmp_path / "clean_feat.h5"])
    assert store.shape("tt01/shot_0001").labels == 2
    assert_text(store, "tt01/shot_0001", [1, 0], text.astype(np.float32).tolist())
    assert store.frames("tt01/shot_0001").dtype == np.float32
    np.testing.assert_array_equal(store.frames("tt01/shot_0001"), frames.astype(np.float32).reshape(6, 1, IMAGE_WIDTH))


def test_our_files_have_the_published_layout_beneath(tmp_path: Path) -> None:
    text, frames = draw_features([2, 4], 3, seed=0)
    with h5py.File(write_store(tmp_path / "feat.h5", {"a/b": (text, frames)})) as file:
        assert file["a/b/text_emb"].shape == (2, 4, TEXT_WIDTH)
        assert file["a/b/img_emb"].shape == (1, 3, IMAGE_WIDTH)
        assert file["a/b/text_len"][()].tolist() == [2, 4]


def test_several_files_make_one_store(tmp_path: Path) -> None:
    clips = {f"clip-{number}": draw_features([2, 3], 2, seed=number) for number in range(4)}
    ids = list(clips)
    first = write_store(tmp_path / "0.h5", {clip_id: clips[clip_id] for clip_id in ids[:1]})
    empty = write_store(tmp_path / "1.h5", {})
    third = write_store(tmp_path / "2.h5", {clip_id: clips[clip_id] for clip_id in ids[1:]})
    store = FeatureStore([empty, first, third])
    for clip_id, (text, frames) in clips.items():
        assert clip_id in store
        assert_text(store, clip_id, [1, 0], text)
        np.testing.assert_array_equal(store.frames(clip_id), frames[:, None])


def test_a_clip_without_features_is_not_in_the_store(tmp_path: Path) -> None:
    store = FeatureStore([write_store(tmp_path / "feat.h5", {"clip": draw_features([2], 1, seed=0)})])
    assert "other" not in store
    with pytest.raises(KeyError, match="other has no features"):
        store.frames("other")


def test_a_continued_file_keeps_finished_clips_and_gains_new_ones(tmp_path: Path) -> None:
    first, second = draw_features([2, 3], 2, seed=1), draw_features([4], 1, seed=2)
    path = write_store(tmp_path / "feat.h5", {"a/1": first})
    assert read_clip_names(path, METADATA, "float32") == {"a/1"}
    write_store(path, {"a/2": second})
    assert read_clip_names(path, METADATA, "float32") == {"a/1", "a/2"}
    store = FeatureStore([path])
    assert_text(store, "a/1", [0, 1], first[0])
    assert_text(store, "a/2", [0], second[0])


def test_a_clip_cut_short_is_written_again(tmp_path: Path) -> None:
    path = write_store(tmp_path / "feat.h5", {"clip": draw_features([2, 3], 2, seed=1)})
    with h5py.File(path, "a") as file:
        del file["clip/img_emb"]
    text, frames = draw_features([1, 4, 2], 3, seed=2)
    assert read_clip_names(path, METADATA, "float32") == set()
    write_store(path, {"clip": (text, frames)})
    assert read_clip_names(path, METADATA, "float32") == {"clip"}
    assert_text(FeatureStore([path]), "clip", [0, 1, 2], text)


@pytest.mark.parametrize(
    "other", [{"text_encoder": "tiny@2", "tokens_per_frame": 1}, {"text_encoder": "tiny@1", "tokens_per_frame": 4}]
)
def test_features_of_other_encoders_are_not_mixed_into_a_file(tmp_path: Path, other: dict[str, str | int]) -> None:
    path = write_store(tmp_path / "feat.h5", {"clip": draw_features([2], 1, seed=0)})
    before = path.read_bytes()
    with pytest.raises(UserError, match="--out") as caught:
        FeatureWriter(path, other)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == before


def test_a_published_file_is_not_continued_with_our_encoders(tmp_path: Path) -> None:
    path = tmp_path / "clean_feat.h5"
    with h5py.File(path, "w") as file:
        file["clip/text_emb"], file["clip/img_emb"] = np.zeros((1, 2, 3)), np.zeros((1, 2, 3))
    with pytest.raises(UserError, match="holds features made with"):
        FeatureWriter(path, METADATA)


def test_writing_makes_the_folder(tmp_path: Path) -> None:
    path = write_store(tmp_path / "deep" / "er" / "feat.h5", {"clip": draw_features([2], 1, seed=0)})
    assert "clip" in FeatureStore([path])


def test_a_missing_file_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    whole = write_store(tmp_path / "feat.h5", {"clip": draw_features([2], 1, seed=0)})
    missing = tmp_path / "absent.h5"
    with pytest.raises(UserError, match=r"lr2ppo extract") as caught:
        FeatureStore([whole, missing])
    assert str(missing) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"these are no features", b"\x89HDF\r\n\x1a\n"])
def test_a_file_that_is_not_hdf5_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "feat.h5"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"feat\.h5: is not a whole HDF5 file"):
        FeatureStore([path])


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_store(tmp_path / "feat.h5", {"clip": draw_features([200], 50, seed=0)})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"feat\.h5: is not a whole HDF5 file"):
        FeatureStore([path])


def test_a_file_that_is_not_hdf5_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"notes\.txt: is not a whole HDF5 file"):
        FeatureWriter(path, METADATA)
    assert path.read_text(encoding="utf-8") == "mine"


def test_a_file_without_clips_is_refused(tmp_path: Path) -> None:
    path = write_store(tmp_path / "feat.h5", {})
    with pytest.raises(UserError, match="found no clip with text_emb and img_emb"):
        FeatureStore([path])


def pickled(store: FeatureStore) -> FeatureStore:
    copy: FeatureStore = pickle.loads(pickle.dumps(store))  # noqa: S301
    return copy


def test_a_store_in_use_can_be_pickled(tmp_path: Path) -> None:
    text, frames = draw_features([2, 3], 2, seed=0)
    store = FeatureStore([write_store(tmp_path / "feat.h5", {"clip": (text, frames)})])
    store.frames("clip")
    copy = pickled(store)
    assert_text(copy, "clip", [1, 0], text)
    np.testing.assert_array_equal(copy.frames("clip"), store.frames("clip"))


def read_frames(store: FeatureStore, clip_ids: list[str]) -> list[Array]:
    return [store.frames(clip_id) for clip_id in clip_ids]


def forked_loader(clip_ids: list[str], workers: int, read: Callable[[list[str]], Any]) -> DataLoader[Any]:
    """A loader that calls `read` for two clips at a time in forked processes."""
    return DataLoader(
        clip_ids,  # type: ignore[arg-type]
        batch_size=2,
        collate_fn=read,
        num_workers=workers,
        multiprocessing_context="fork",
    )


def test_a_store_in_use_works_in_forked_workers_and_after_them(tmp_path: Path) -> None:
    clips = {f"clip-{number}": draw_features([2, 3], 2, seed=number) for number in range(8)}
    store = FeatureStore([write_store(tmp_path / "feat.h5", clips)])
    expected = [store.frames(name) for name in clips]
    loader = forked_loader(list(clips), 2, functools.partial(read_frames, store))
    found = [frames for batch in loader for frames in batch]
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))
    assert_text(store, "clip-3", [1], clips["clip-3"][0])


@pytest.mark.parametrize("way", ["replaced", "written over"])
def test_a_store_reads_the_same_files_in_every_process_or_none(tmp_path: Path, way: str) -> None:
    path = write_store(tmp_path / "feat.h5", {"clip": draw_features([2], 2, seed=0)})
    other = write_store(tmp_path / "other.h5", {"clip": draw_features([2], 2, seed=1)})
    store = FeatureStore([path])
    before, copy = store.frames("clip"), pickled(store)
    # Other rights and names are no other content.
    path.chmod(0o600)
    (tmp_path / "backup.h5").hardlink_to(path)
    store.check_unchanged()
    np.testing.assert_array_equal(pickled(store).frames("clip"), before)
    if way == "replaced":
        other.replace(path)
        # What is open stays what it was.
        store.check_unchanged()
        np.testing.assert_array_equal(store.frames("clip"), before)
    else:
        path.write_bytes(other.read_bytes())
        with pytest.raises(UserError, match=r"feat\.h5: changed while it was in use"):
            store.check_unchanged()
    with pytest.raises(UserError, match=r"feat\.h5: changed while it was in use"):
        copy.frames("clip")


def test_a_file_with_another_name_is_not_continued(tmp_path: Path) -> None:
    path = write_store(tmp_path / "feat.h5", {"clip": draw_features([2], 2, seed=0)})
    before = path.read_bytes()
    (tmp_path / "elsewhere.h5").hardlink_to(path)
    with pytest.raises(UserError, match=r"feat\.h5: is a hard link, one of 2 names of a file; .*put a copy of it"):
        FeatureWriter(path, METADATA)
    with pytest.raises(UserError, match=r"feat\.h5: is a hard link"):
        remove_clips(path, ["clip"])
    assert path.read_bytes() == before


def test_clips_whose_id_is_a_path_prefix_of_anothers_are_both_read(tmp_path: Path) -> None:
    text, frames = [np.ones((2, 3), np.float32)], np.ones((2, 5), np.float32)
    with FeatureWriter(tmp_path / "f.h5", {}) as writer:
        writer.write("tt01/shot1", text, frames)
        writer.write("tt01", [2 * text[0]], frames)
    assert read_clip_names(tmp_path / "f.h5", {}, "float32") == {"tt01", "tt01/shot1"}
    store = FeatureStore([tmp_path / "f.h5"])
    assert store.text("tt01/shot1", [0])[0].max() == 1
    assert store.text("tt01", [0])[0].max() == 2


def test_shards_with_other_tokens_a_frame_are_refused(tmp_path: Path) -> None:
    for number, tokens in enumerate((4, 1)):
        with FeatureWriter(tmp_path / f"{number}.h5", {"tokens_per_frame": tokens}) as writer:
            writer.write(f"clip-{number}", [np.ones((2, 3), np.float32)], np.ones((4, 5), np.float32))
    with pytest.raises(UserError, match=r"found \[1, 4\] tokens a frame"):
        FeatureStore([tmp_path / "0.h5", tmp_path / "1.h5"])


def test_an_id_whose_first_part_is_a_clip_is_no_clip(tmp_path: Path) -> None:
    store = FeatureStore([write_store(tmp_path / "feat.h5", {"a/1": draw_features([2], 1, seed=0)})])
    assert "a" not in store
    assert "a//./1" not in store


def as_stored(values: Array, dtype: StoredType) -> Array:
    """Round numbers to a dtype with torch."""
    return torch.tensor(values).to(getattr(torch, dtype)).float().numpy()


stored_types = st.sampled_from(["float32", "float16", "bfloat16"])


@settings(deadline=None, max_examples=60)
@given(
    dtype=stored_types,
    text=hnp.arrays(np.float32, (3, 2, TEXT_WIDTH), elements=st.floats(-65504, 65504, width=32)),
    frames=hnp.arrays(
        np.float32, (2, IMAGE_WIDTH), elements=st.floats(-65504, 65504, width=32) | st.just(float("nan"))
    ),
)
def test_features_of_any_dtype_are_read_as_the_nearest_float32(
    tmp_path_factory: pytest.TempPathFactory, dtype: StoredType, text: Array, frames: Array
) -> None:
    path = tmp_path_factory.mktemp("store") / "feat.h5"
    store = FeatureStore([write_store(path, {"clip": (list(text), frames)}, dtype=dtype)])
    assert_text(store, "clip", [0, 1, 2], list(as_stored(text, dtype)))
    assert_text(store, "clip", [2, 0], list(as_stored(text, dtype)))
    found = store.frames("clip")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found[:, 0], as_stored(frames, dtype))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
def test_a_file_stores_its_dtype_and_16_bits_are_2_bytes_a_number(tmp_path: Path, dtype: StoredType, size: int) -> None:
    with h5py.File(write_store(tmp_path / "feat.h5", {"clip": draw_features([3], 2, seed=0)}, dtype=dtype)) as file:
        assert file.attrs["dtype"] == np.bytes_(dtype)
        assert file["clip/text_emb"].nbytes == 3 * TEXT_WIDTH * size
        assert file["clip/img_emb"].nbytes == 2 * IMAGE_WIDTH * size


@pytest.mark.parametrize("where", ["text", "frames"])
def test_what_float16_cannot_hold_is_refused_and_leaves_the_file_as_it_was(tmp_path: Path, where: str) -> None:
    text, frames = draw_features([2, 3], 2, seed=0)
    path = write_store(tmp_path / "feat.h5", {"sound": (text, frames)}, dtype="float16")
    (text[1] if where == "text" else frames)[1, 2] = -65600
    with (
        FeatureWriter(path, METADATA, "float16") as writer,
        pytest.raises(UserError, match=r"clip a/large: found a feature of -65600, .*65504; .*--dtype bfloat16"),
    ):
        writer.write("a/large", text, frames)
    with h5py.File(path) as file:
        assert list(file) == ["sound"]
    wider = write_store(tmp_path / "wider.h5", {"a/large": (text, frames)}, dtype="bfloat16")
    assert_text(FeatureStore([wider]), "a/large", [1], [as_stored(row, "bfloat16") for row in text])


@pytest.mark.parametrize(("first", "second"), [("float32", "bfloat16"), ("float16", "float32")])
def test_a_file_of_another_dtype_is_not_continued(tmp_path: Path, first: StoredType, second: StoredType) -> None:
    path = write_store(tmp_path / "feat.h5", {"clip": draw_features([2], 1, seed=0)}, dtype=first)
    with pytest.raises(UserError, match=f"dtype {first}, now asked for .*dtype {second}; .*--out"):
        FeatureWriter(path, METADATA, second)


def test_an_old_file_without_a_dtype_is_continued_as_float32(tmp_path: Path) -> None:
    path = write_store(tmp_path / "feat.h5", {"a": draw_features([2], 1, seed=0)})
    with h5py.File(path, "a") as file:
        del file.attrs["dtype"]
    with pytest.raises(UserError, match="now asked for"):
        FeatureWriter(path, METADATA, "float16")
    write_store(path, {"b": draw_features([2], 1, seed=1)})
    assert read_clip_names(path, METADATA, "float32") == {"a", "b"}


def test_files_of_different_dtypes_make_one_store(tmp_path: Path) -> None:
    clips = {name: draw_features([2, 3], 2, seed=seed) for seed, name in enumerate(("float32", "float16", "bfloat16"))}
    dtypes: list[StoredType] = ["float32", "float16", "bfloat16"]
    store = FeatureStore([write_store(tmp_path / f"{d}.h5", {d: clips[d]}, dtype=d) for d in dtypes])
    for dtype in dtypes:
        text, frames = clips[dtype]
        assert_text(store, dtype, [1, 0], [as_stored(row, dtype) for row in text])
        np.testing.assert_array_equal(store.frames(dtype)[:, 0], as_stored(frames, dtype))


def test_bytes_read_counts_the_features_asked_for_as_they_are_stored(tmp_path: Path) -> None:
    clips = {"clip": draw_features([2, 9, 4], 6, seed=0)}
    store = FeatureStore([write_store(tmp_path / "feat.h5", clips, dtype="bfloat16")])
    store.shape("clip")
    assert store.bytes_read == 0
    store.text("clip", [2, 0])
    assert store.bytes_read == 2 * 4 * TEXT_WIDTH * 2
    store.frames("clip")
    assert store.bytes_read == 2 * 4 * TEXT_WIDTH * 2 + 6 * IMAGE_WIDTH * 2
    assert pickled(store).bytes_read == 0


def count_around_reading(store: FeatureStore, clip_ids: list[str]) -> tuple[int, int]:
    before = store.bytes_read
    read_frames(store, clip_ids)
    return before, store.bytes_read


def test_bytes_read_are_those_of_this_process(tmp_path: Path) -> None:
    clips = {f"clip-{number}": draw_features([2], 3, seed=number) for number in range(4)}
    store = FeatureStore([write_store(tmp_path / "feat.h5", clips)])
    store.frames("clip-0")
    counts = forked_loader(list(clips), 1, functools.partial(count_around_reading, store))
    a_clip = 3 * IMAGE_WIDTH * 4
    assert list(counts) == [(0, 2 * a_clip), (2 * a_clip, 4 * a_clip)]
    assert store.bytes_read == a_clip


SHARDS = MAX_OPEN_FILES + 40


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of three clips each; each movie's clips are spread over all files."""
    root = tmp_path_factory.mktemp("shards")
    return [
        write_store(
            root / f"{shard:03d}.h5",
            {f"movie-{part}/{shard}": draw_features([2], 1, seed=10 * shard + part) for part in range(3)},
        )
        for shard in range(SHARDS)
    ]


def open_files() -> int:
    return sum(path.resolve().suffix == ".h5" for path in Path("/proc/self/fd").iterdir())


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of opened files, one for each opening."""
    names: list[str] = []
    start = h5py.File.__init__

    def noting(file: h5py.File, source: Any, *more: Any, **options: Any) -> None:
        # h5py also makes file objects for files that are open already.
        if isinstance(source, Path):
            names.append(source.name)
        start(file, source, *more, **options)

    monkeypatch.setattr(h5py.File, "__init__", noting)
    return names


def test_finding_clips_in_many_files_opens_each_file_once(shards: list[Path], opened: list[str]) -> None:
    store = FeatureStore(shards)
    opened.clear()
    order = np.random.default_rng(0).permutation(SHARDS)
    assert all(f"movie-{part}/{shard}" in store for shard in order for part in range(3))
    assert not any(f"movie-9/{shard}" in store for shard in order)
    assert len(opened) <= SHARDS
    opened.clear()
    copy = pickled(store)
    text, frames = draw_features([2], 1, seed=10 * 70 + 2)
    assert_text(copy, "movie-2/70", [0], text)
    np.testing.assert_array_equal(copy.frames("movie-2/70")[:, 0], frames)
    assert opened == ["070.h5"]


def test_few_of_many_files_are_open_at_a_time_and_the_last_used_stay(shards: list[Path], opened: list[str]) -> None:
    before = open_files()
    store = FeatureStore(shards)
    for shard in np.random.default_rng(1).permutation(SHARDS):
        text, _ = draw_features([2], 1, seed=10 * int(shard) + 1)
        assert_text(store, f"movie-1/{shard}", [0], text)
        assert open_files() - before <= MAX_OPEN_FILES
    store.frames("movie-0/0")
    opened.clear()
    for shard in [*range(SHARDS)] * 2:
        store.frames(f"movie-0/{shard}")
        store.frames("movie-0/0")
    assert "000.h5" not in opened


def test_two_files_with_the_same_clip_are_refused_and_named(tmp_path: Path) -> None:
    paths = [write_store(tmp_path / f"{seed}.h5", {"clip": draw_features([2], 1, seed=seed)}) for seed in (4, 3)]
    with pytest.raises(UserError, match=r"3\.h5: clip clip: found in .*4\.h5 too, wanted in one file"):
        FeatureStore(paths)


def test_a_missing_file_of_which_there_are_shards_is_refused_with_the_setting_that_reads_them(tmp_path: Path) -> None:
    for name in ("feat-00-of-02.h5", "feat-01-of-02.h5", "feat-old.h5"):
        write_store(tmp_path / name, {"clip": draw_features([2], 1, seed=0)})
    with pytest.raises(UserError, match=r"but it has shards; read them with 'data\.features=\[feat-\*-of-\*\.h5\]'"):
        FeatureStore([tmp_path / "feat.h5"])


@pytest.mark.parametrize("value", [0, -1, 1.5, "two", [1, 2]])
def test_a_number_of_tokens_a_frame_that_makes_no_sense_is_refused(tmp_path: Path, value: object) -> None:
    path = write_store(tmp_path / "feat.h5", {"clip": draw_features([2], 2, seed=0)})
    with h5py.File(path, "a") as file:
        file.attrs["tokens_per_frame"] = value
    with pytest.raises(UserError, match=r"feat\.h5: .*attribute tokens_per_frame: found .*, wanted a"):
        FeatureStore([path])


def test_rows_that_do_not_fill_whole_frames_are_reported(tmp_path: Path) -> None:
    clips = {"a": draw_features([2], 4, seed=0), "b": draw_features([2], 6, seed=1)}
    store = FeatureStore([write_store(tmp_path / "feat.h5", clips, {"tokens_per_frame": 4})])
    with pytest.raises(ValueError, match="found img_emb of 6 rows, wanted 4 a frame"):
        store.shape("b")


def test_numbers_of_another_dtype_than_the_files_are_reported(tmp_path: Path) -> None:
    path = write_store(tmp_path / "feat.h5", {clip: draw_features([2], 1, seed=0) for clip in "ab"}, dtype="bfloat16")
    with h5py.File(path, "a") as file:
        del file["b/img_emb"]
        file["b/img_emb"] = np.ones((1, 1, IMAGE_WIDTH), np.float32)
    with pytest.raises(ValueError, match="img_emb: found float32, wanted bfloat16"):
        FeatureStore([path]).shape("b")


def test_a_dtype_stored_as_bytes_is_read(tmp_path: Path) -> None:
    text, frames = draw_features([2], 1, seed=0)
    path = write_store(tmp_path / "feat.h5", {"clip": (text, frames)}, dtype="bfloat16")
    with h5py.File(path, "a") as file:
        file.attrs["dtype"] = np.bytes_("bfloat16")
    np.testing.assert_array_equal(FeatureStore([path]).frames("clip")[:, 0], as_stored(frames, "bfloat16"))


def test_circular_links_are_followed_once(tmp_path: Path) -> None:
    path = write_store(tmp_path / "feat.h5", {"a/b": draw_features([2], 1, seed=0)})
    with h5py.File(path, "a") as file:
        file["a/b/up"], file["a/again"], file["alias"] = file["a"], file["/"], file["a/b"]
    assert read_clip_names(path, METADATA, "float32") == {"a/b", "alias"}
    assert "alias" in FeatureStore([path])


def test_a_pattern_may_name_folders(tmp_path: Path) -> None:
    path = write_store(tmp_path / "one" / "feat-1.h5", {"clip": draw_features([2], 1, seed=0)})
    assert find_feature_files(tmp_path / "other", [f"{tmp_path}/one/feat-*.h5"]) == [path]
    assert find_feature_files(tmp_path, ["one/**.h5"]) == [path]


def test_brackets_in_a_name_that_exists_are_no_pattern(tmp_path: Path) -> None:
    clip = draw_features([2], 1, seed=0)
    folder = tmp_path / "data [1]"
    one, other = (write_store(folder / "a[b]" / f"feat[{name}].h5", {name: clip}) for name in "xy")
    assert find_feature_files(folder / "a[b]", ["feat[x].h5"]) == [one]
    assert find_feature_files(folder, ["a[b]/feat*.h5"]) == [one, other]
    assert find_feature_files(tmp_path, [f"{folder}/a[b]/feat*.h5"]) == [one, other]
    assert find_feature_files(folder, ["a[[]b]/feat[[]y].h5"]) == [other]


@pytest.mark.parametrize("name", ["clean_feat.h5", "my feat.h5", "it's, [a] feat.h5", "feat: #1.h5"])
def test_the_setting_for_shards_can_be_pasted(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    shards = [
        write_store(tmp_path / f"{path.stem}-{rank:02d}-of-02.h5", {f"c{rank}": draw_features([2], 1, seed=rank)})
        for rank in range(2)
    ]
    with pytest.raises(UserError, match="no such feature file, but it has shards; read them with ") as refused:
        FeatureStore([path])
    (setting,) = shlex.split(str(refused.value).partition("read them with ")[2])
    key, _, value = setting.partition("=")
    assert key == "data.features"
    assert find_feature_files(tmp_path, yaml.safe_load(value)) == shards


def test_the_command_that_makes_features_can_be_pasted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make it with: ") as refused:
        FeatureStore([tmp_path / "my data" / "clean_feat.h5"])
    command = shlex.split(str(refused.value).partition("make it with: ")[2])
    assert command[:4] == ["lr2ppo", "extract", "--data", str(tmp_path / "my data")]
