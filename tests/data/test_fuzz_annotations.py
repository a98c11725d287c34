"""Broken annotation files are refused with one message or read as valid clips: no crashes and no bad clips."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr2ppo.data.annotations import Clip, Need, read_clips, read_valid_clips, write_clips
from lr2ppo.errors import UserError
from tests.helpers.fuzz import Case, damaged, fuzzed, may_refuse, mutated

ENTRIES: list[dict[str, Any]] = [
    {
        "id": f"tt01/shot-{number}",
        "tags": [{"tag": "boat", "target": 2}, {"tag": "naïve car", "target": "0"}, {"tag": "sky", "target": 1.0}],
        "description": "a story about a boat",
        "filename": "clip.mp4",
        "image": ["frames/0.jpg", "frames/1.jpg"],
        "index": [[0, 1], [2, 1]],
    }
    for number in range(3)
]
needs = st.sampled_from(get_args(Need))


def assert_valid(clips: list[Clip], need: Need, copy: Path) -> None:
    """Check what every reader of clips relies on."""
    assert len({clip.id for clip in clips}) == len(clips)
    for clip in clips:
        assert clip.id
        assert clip.labels or need == "images"
        assert clip.images or need != "images"
        assert clip.grades is not None or need != "grades"
        assert len(clip.pairs) or need != "pairs"
        assert clip.grades is None or (
            len(clip.grades) == len(clip.labels) and set(clip.grades.tolist()) <= set(range(11))
        )
        assert clip.pairs.shape[1:] == (2,)
        assert (clip.pairs[:, 0] != clip.pairs[:, 1]).all()
        assert ((clip.pairs >= 0) & (clip.pairs < len(clip.labels))).all()
    write_clips(copy, clips)
    again = read_valid_clips(copy, need)[0] if clips else []
    for clip, other in zip(clips, again, strict=True):
        assert (clip.id, clip.labels, clip.description, clip.filename, clip.images) == (
            other.id, other.labels, other.description, other.filename, other.images
        )  # fmt: skip
        np.testing.assert_array_equal(clip.pairs, other.pairs)


def read_or_refuse(path: Path, need: Need) -> None:
    with may_refuse(path):
        clips, faults = read_valid_clips(path, need)
        assert_valid(clips, need, path.with_name("copy.json"))
        # `read_clips` raises exactly these faults.
        with pytest.raises(UserError, match=f"{len(faults)} fault") if faults else nullcontext():
            assert len(read_clips(path, need)) == len(clips)


def any_tree(folder: Path, _: Path, data: st.DataObject) -> None:
    tree: Any = data.draw(mutated(ENTRIES))
    (folder / "clips.json").write_text(json.dumps(tree), encoding="utf-8")
    read_or_refuse(folder / "clips.json", data.draw(needs))


def any_bytes(folder: Path, _: Path, data: st.DataObject) -> None:
    content = data.draw(damaged(json.dumps(ENTRIES, ensure_ascii=False).encode()) | st.binary(max_size=40))
    (folder / "clips.json").write_bytes(content)
    read_or_refuse(folder / "clips.json", data.draw(needs))


CASES: dict[str, Case] = {"annotation trees": any_tree, "annotation bytes": any_bytes}


@pytest.mark.slow
@fuzzed(500)
@given(data=st.data())
def test_entries_of_any_content(tmp_path: Path, data: st.DataObject) -> None:
    any_tree(tmp_path, tmp_path, data)


@fuzzed(300)
@given(data=st.data())
def test_files_of_any_bytes(tmp_path: Path, data: st.DataObject) -> None:
    any_bytes(tmp_path, tmp_path, data)
