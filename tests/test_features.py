"""The feature store: what is written is read, from our files and from the published ones."""

import functools
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from lr2ppo.data.features import FeatureStore, FeatureWriter
from lr2ppo.errors import UserError

Array = NDArray[np.float32]
TEXT_WIDTH, IMAGE_WIDTH = 3, 5
FACTS: dict[str, str | int] = {"text_encoder": "tiny@1", "tokens_per_frame": 1}


def draw_features(
    lengths: Sequence[int], frames: int, seed: int, text_width: int = TEXT_WIDTH
) -> tuple[list[Array], Array]:
    rng = np.random.default_rng(seed)
    text = [rng.normal(size=(length, text_width)).astype(np.float32) for length in lengths]
    return text, rng.normal(size=(frames, IMAGE_WIDTH)).astype(np.float32)


def write_store(path: Path, clips: dict[str, tuple[list[Array], Array]], facts: dict[str, str | int] = FACTS) -> Path:
    with FeatureWriter(path, facts) as writer:
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
# The first part says how deep an id goes, so that no id is another's folder.
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
    with FeatureWriter(path, FACTS) as writer:
        assert "a/1" in writer
        assert "a/2" not in writer
        assert "a" not in writer
        writer.write("a/2", *second)
    store = FeatureStore([path])
    assert_text(store, "a/1", [0, 1], first[0])
    assert_text(store, "a/2", [0], second[0])


def test_a_clip_cut_short_is_written_again(tmp_path: Path) -> None:
    path = write_store(tmp_path / "feat.h5", {"clip": draw_features([2, 3], 2, seed=1)})
    with h5py.File(path, "a") as file:
        del file["clip/img_emb"]
    text, frames = draw_features([1, 4, 2], 3, seed=2)
    with FeatureWriter(path, FACTS) as writer:
        assert "clip" not in writer
        writer.write("clip", text, frames)
        assert "clip" in writer
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
        FeatureWriter(path, FACTS)


def test_writing_makes_the_folder(tmp_path: Path) -> None:
    path = write_store(tmp_path / "deep" / "er" / "feat.h5", {"clip": draw_features([2], 1, seed=0)})
    assert "clip" in FeatureStore([path])


def test_a_missing_file_is_refused_with_the_command_that_makes_it(tmp_path: Path) -> None:
    whole = write_store(tmp_path / "feat.h5", {"clip": draw_features([2], 1, seed=0)})
    missing = tmp_path / "absent.h5"
    with pytest.raises(UserError, match=r"python -m lr2ppo\.encoders\.extract") as caught:
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
    with pytest.raises(UserError, match=r"notes\.txt: cannot be written or continued"):
        FeatureWriter(path, FACTS)
    assert path.read_text(encoding="utf-8") == "mine"


def test_a_file_without_clips_is_refused(tmp_path: Path) -> None:
    path = write_store(tmp_path / "feat.h5", {})
    with pytest.raises(UserError, match="found no clip with text_emb and img_emb"):
        FeatureStore([path])


def test_a_store_in_use_can_be_pickled(tmp_path: Path) -> None:
    text, frames = draw_features([2, 3], 2, seed=0)
    store = FeatureStore([write_store(tmp_path / "feat.h5", {"clip": (text, frames)})])
    store.frames("clip")
    copy = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert_text(copy, "clip", [1, 0], text)
    np.testing.assert_array_equal(copy.frames("clip"), store.frames("clip"))


def read_frames(store: FeatureStore, clip_ids: list[str]) -> list[Array]:
    return [store.frames(clip_id) for clip_id in clip_ids]


def test_a_store_in_use_works_in_forked_workers_and_after_them(tmp_path: Path) -> None:
    clips = {f"clip-{number}": draw_features([2, 3], 2, seed=number) for number in range(8)}
    store = FeatureStore([write_store(tmp_path / "feat.h5", clips)])
    expected = [store.frames(name) for name in clips]
    loader: DataLoader[str] = DataLoader(
        list(clips),  # type: ignore[arg-type]
        batch_size=2,
        collate_fn=functools.partial(read_frames, store),
        num_workers=2,
        multiprocessing_context="fork",
    )
    found = [frames for batch in loader for frames in batch]
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))
    assert_text(store, "clip-3", [1], clips["clip-3"][0])


def test_a_clip_whose_id_is_a_folder_of_anothers_loses_and_hides_nothing(tmp_path: Path) -> None:
    text, frames = [np.ones((2, 3), np.float32)], np.ones((2, 5), np.float32)
    with FeatureWriter(tmp_path / "f.h5", {}) as writer:
        writer.write("tt01/shot1", text, frames)
        assert "tt01" not in writer
        writer.write("tt01", [2 * text[0]], frames)
        assert "tt01/shot1" in writer
    store = FeatureStore([tmp_path / "f.h5"])
    assert store.text("tt01/shot1", [0])[0].max() == 1
    assert store.text("tt01", [0])[0].max() == 2


def test_shards_with_other_tokens_a_frame_are_refused(tmp_path: Path) -> None:
    for number, tokens in enumerate((4, 1)):
        with FeatureWriter(tmp_path / f"{number}.h5", {"tokens_per_frame": tokens}) as writer:
            writer.write(f"clip-{number}", [np.ones((2, 3), np.float32)], np.ones((4, 5), np.float32))
    with pytest.raises(UserError, match=r"found \[1, 4\] tokens a frame"):
        FeatureStore([tmp_path / "0.h5", tmp_path / "1.h5"])
