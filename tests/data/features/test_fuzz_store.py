"""Broken feature files are refused, their clips named, or read as finite features: never a crash."""

import contextlib
import shutil
from pathlib import Path
from typing import Any, get_args

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr2ppo.data import Clip, ClipDataset, FeatureStore, FeatureWriter
from lr2ppo.data.features.writer import StoredType, read_clip_names
from lr2ppo.data.samplers import whole_clips
from lr2ppo.data.validate import check_values, structure_faults
from lr2ppo.errors import UserError
from tests.helpers.fuzz import Case, damaged, fuzzed, may_refuse, run_apart

LABELS, TOKENS, FRAMES, TEXT_WIDTH, IMAGE_WIDTH = 3, 4, 2, 5, 6
CLIPS = [Clip(name, ("a", "b", "c")) for name in ("tt01", "tt01/shot-1", "tt02/shot-1", "flat")]
METADATA: dict[str, str | int] = {"text_encoder": "tiny@1", "tokens_per_frame": 2}
NOTES: dict[str, str | int] = {
    "image_encoder": "vit@2",
    "tokenizer": "tiny@3",
    "frame_tokens": "patches",
    "max_text_tokens": 40,
    **{f"{name}_path": f"encoders/{name}" for name in ("text", "tokenizer", "image")},
}


def write_features(path: Path, dtype: StoredType = "float32") -> Path:
    rng = np.random.default_rng(0)
    with FeatureWriter(path, METADATA, dtype, NOTES) as writer:
        for clip in CLIPS:
            text = [rng.normal(size=(tokens, TEXT_WIDTH)).astype(np.float32) for tokens in (TOKENS, 2, 3)]
            writer.write(clip.id, text, rng.normal(size=(2 * FRAMES, IMAGE_WIDTH)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file per dtype."""
    root = tmp_path_factory.mktemp("valid")
    write_valid(root)
    return root


def write_valid(root: Path) -> None:
    for dtype in get_args(StoredType):
        write_features(root / dtype, dtype)


def read(path: Path) -> int:
    """Read clips as a stage does, check that they are complete and finite, and return their number."""
    store = FeatureStore([path])
    fitting = ClipDataset(CLIPS, store, frames=FRAMES).without(structure_faults(CLIPS, store))
    kept = fitting.without(check_values(fitting.clips, store)[0])
    for request in whole_clips(kept.clips):
        item = kept[request]
        assert len(item.text) == LABELS
        assert all(len(row) and row.shape[1] == store.text_width and row.isfinite().all() for row in item.text)
        assert len(item.frames)
        assert item.frames.shape[1] == store.image_width
        assert item.frames.isfinite().all()
    return len(kept)


def resume(path: Path) -> None:
    """Write one more clip, as a resumed extraction does."""
    read_clip_names(path, METADATA, "float32")
    with FeatureWriter(path, METADATA) as writer:
        writer.write("new", [np.ones((2, TEXT_WIDTH), np.float32)], np.ones((2, IMAGE_WIDTH), np.float32))


@pytest.mark.parametrize("dtype", get_args(StoredType))
def test_what_is_not_broken_is_read(valid: Path, dtype: str) -> None:
    assert read(valid / dtype) == len(CLIPS)
    assert FeatureStore([valid / dtype]).encoding is not None


def read_or_refuse(path: Path) -> None:
    with may_refuse(path):
        read(path)


def any_bytes(folder: Path, valid: Path, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(get_args(StoredType)))
    path = folder / "clean_feat.h5"
    path.write_bytes(data.draw(damaged((valid / dtype).read_bytes())))
    read_or_refuse(path)


@pytest.mark.slow
def test_files_of_any_bytes(tmp_path: Path, valid: Path) -> None:
    """Runs in a separate process, which a damaged file can crash; the folder then holds that file."""

    @fuzzed(500)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        any_bytes(tmp_path, valid, data)

    run_apart(check)


def test_an_attribute_of_a_type_that_crashes_the_process_is_not_read(valid: Path, tmp_path: Path) -> None:
    path = tmp_path / "clean_feat.h5"
    shutil.copy(valid / "float32", path)
    with h5py.File(path, "a") as file:
        file.attrs["dtype"] = "float32"
    content = bytearray(path.read_bytes())
    # A variable-length string becomes a variable-length object of unknown type.
    content[content.index(b"dtype\0\0\0\x19\x01") + 9] = 2
    path.write_bytes(content)

    def check() -> None:
        with pytest.raises(UserError, match="is damaged: attribute dtype: found object"):
            FeatureStore([path])

    run_apart(check)


VALUES: list[Any] = [
    "a text", 3, np.nan, b"bytes", np.ones((3, 4, 5)), np.ones((1, 4, 6), np.float16), np.ones((1, 4, 6), complex),
    np.ones((3, 4, 5), int), np.ones((1, 3, 6), np.float32), np.full((3, 4, 5), 1e300), np.ones((0, 4, 5)),
    np.ones((3, 0, 5)), np.ones((3, 4, 0)), np.ones(3, int), np.array([1, -2, 3]), np.array([1, 2, 9]),
    np.array([1, 2, 0]), np.array([2**63, 1, 1], np.uint64), np.array(["a", "b", "c"], object), np.ones(3),
    np.array([(1, 2.0)] * 3, dtype=[("a", int), ("b", float)]), np.array([True] * 3), h5py.Empty("f"),
    h5py.SoftLink("/tt01"), h5py.SoftLink("/nowhere"), h5py.ExternalLink("gone.h5", "/x"), np.dtype("f4"),
]  # fmt: skip
NAMES = [f"{clip.id}/{part}" for clip in CLIPS for part in ("text_emb", "img_emb", "text_len")]


changes_of_arrays = st.lists(
    st.tuples(st.sampled_from([*NAMES, "tt01", "tt02", "flat"]), st.sampled_from([*range(len(VALUES)), None])),
    min_size=1,
    max_size=3,
)
changes_of_attributes = st.dictionaries(
    st.sampled_from(["dtype", "tokens_per_frame", "image_encoder", "max_text_tokens"]),
    st.sampled_from(["bfloat16", b"bfloat16", "float32", 0, -1, 1, 2, 3, 1.5, "two", np.ones(2)]),
    max_size=1,
)


def any_arrays(folder: Path, valid: Path, data: st.DataObject) -> None:
    path = folder / "clean_feat.h5"
    shutil.copy(valid / "float32", path)
    with h5py.File(path, "a") as file:
        for name, value in data.draw(changes_of_arrays):
            # An earlier change may have deleted it, or have made it a link to itself.
            with contextlib.suppress(KeyError, OSError, ValueError, RuntimeError):
                del file[name]
                if value is not None:
                    file[name] = VALUES[value]
        file.attrs.update(data.draw(changes_of_attributes))
    read_or_refuse(path)
    with may_refuse(path):
        resume(path)


CASES: dict[str, Case] = {"feature bytes": any_bytes, "feature arrays": any_arrays}


@pytest.mark.slow
@fuzzed(400)
@given(data=st.data())
def test_arrays_of_any_kind(tmp_path: Path, valid: Path, data: st.DataObject) -> None:
    any_arrays(tmp_path, valid, data)
