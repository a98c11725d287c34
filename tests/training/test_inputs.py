"""The inputs of a stage: refused with all faults, or, with strict=false, read without the clips with faults."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from lr2ppo.config.schema import DataConfig, ModelConfig
from lr2ppo.data import Clip, ClipDataset, FeatureStore, FeatureWriter, write_clips
from lr2ppo.data.annotations import Need
from lr2ppo.data.dataset import open_store
from lr2ppo.data.validate import CheckedClips
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.training.inputs import check_fit, left_out_warnings, open_inputs

MODEL = ModelConfig(head="pooled", attention="scaled", width=8, heads=2, dropout=0.0)
IDS = [f"clip-{number}" for number in range(5)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of five training clips, one has a grade of 70, one no features, and one a feature that is not finite."""
    with FeatureWriter(tmp_path / "clean_feat.h5", {}) as writer:
        for name in IDS:
            writer.write(name, [np.ones((3, 4), np.float32)] * 2, np.ones((2, 6), np.float32))
    write_clips(tmp_path / "train.json", [Clip(name, ("a", "b"), grades=np.array([0, 2])) for name in IDS])
    write_clips(tmp_path / "val.json", [Clip(IDS[4], ("a", "b"), grades=np.array([0, 2]))])
    change_entry(tmp_path / "train.json", 1, tags=[{"tag": "a", "target": 70}])
    with h5py.File(tmp_path / "clean_feat.h5", "a") as file:
        del file["clip-2"]
        file["clip-3/img_emb"][0, 0, 0] = np.nan
    return tmp_path


def change_entry(path: Path, number: int, **keys: Any) -> None:
    entries = json.loads(path.read_text(encoding="utf-8"))
    entries[number] |= keys
    path.write_text(json.dumps(entries), encoding="utf-8")


def open_folder(folder: Path, processes: Processes, strict: bool, model: ModelConfig = MODEL) -> list[ClipDataset]:
    data = DataConfig(
        root=folder, features=("clean_feat.h5",), train="train.json", validation="val.json", test="test.json",
        frames=2, frame_order="even", workers=0, strict=strict,
    )  # fmt: skip
    files: dict[str, tuple[str, Need]] = {"train": (data.train, "grades"), "validation": (data.validation, "grades")}
    return open_inputs(data, files, open_store(data), model, processes).datasets


def test_without_strict_clips_with_faults_are_left_out_and_named(folder: Path, alone: Processes) -> None:
    train, validation = open_folder(folder, alone, strict=False)
    assert [clip.id for clip in train.clips] == ["clip-0", "clip-4"]
    assert train.left_out == ["1 (clip-1)", "clip-2", "clip-3"]
    assert (len(validation), validation.left_out) == (1, [])
    (warning,) = left_out_warnings(train, validation)
    assert warning.endswith(": 3 clips, 1 (clip-1), clip-2, clip-3")
    assert left_out_warnings(validation) == []


def test_a_strict_stage_refuses_all_faults_of_a_file_in_one_message_with_advice(folder: Path, alone: Processes) -> None:
    with pytest.raises(UserError) as refused:
        open_folder(folder, alone, strict=True)
    message = str(refused.value)
    assert "train.json: 2 faults found; fix or remove them, extract its features again into clean_feat.h5" in message
    assert "or leave such clips out with data.strict=false" in message
    assert "clip 1 (clip-1): target of label 'a': found 70" in message
    assert "clip clip-2: has no features" in message


def test_clips_that_two_files_have_with_other_labels_are_refused_or_left_out(folder: Path, alone: Processes) -> None:
    write_clips(folder / "train.json", [Clip(name, ("a", "b"), grades=np.array([0, 2])) for name in ("clip-0", IDS[4])])
    write_clips(folder / "val.json", [Clip(name, ("b", "a"), grades=np.array([2, 0])) for name in ("clip-0",)])
    with pytest.raises(UserError, match=r"clip clip-0: train\.json and val\.json have it with different labels"):
        open_folder(folder, alone, strict=True)
    write_clips(folder / "val.json", [Clip(name, ("b", "a"), grades=np.array([2, 0])) for name in ("clip-0", "clip-1")])
    train, validation = open_folder(folder, alone, strict=False)
    assert [[clip.id for clip in dataset.clips] for dataset in (train, validation)] == [[IDS[4]], ["clip-1"]]


def test_strict_is_the_default(folder: Path) -> None:
    keys = {"root": folder, "features": "f", "train": "", "validation": "", "test": "", "workers": 0}
    assert DataConfig.model_validate(keys | {"frames": 1, "frame_order": "even"}).strict


def test_clips_left_out_are_checked_again_next_time(folder: Path, alone: Processes) -> None:
    open_folder(folder, alone, strict=False)
    store = FeatureStore([folder / "clean_feat.h5"])
    assert [clip.id for clip in CheckedClips(store).missing(Clip(name, ("a", "b")) for name in IDS)] == IDS[1:4]
    train, _ = open_folder(folder, alone, strict=False)
    assert "clip-3" in train.left_out


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, r"val\.json: 1 fault found; fix or remove them, no valid clip remains"),
        (2, r"val\.json: 1 fault found; extract its features again into clean_feat\.h5, no valid clip remains"),
        (3, r"clean_feat\.h5: 1 fault found; extract these features again, no other clip"),
    ],
)
def test_a_file_of_which_nothing_would_remain_is_refused(
    folder: Path, alone: Processes, number: int, expected: str
) -> None:
    entry = json.loads((folder / "train.json").read_text(encoding="utf-8"))[number]
    (folder / "val.json").write_text(json.dumps([entry]), encoding="utf-8")
    with pytest.raises(UserError, match=expected):
        open_folder(folder, alone, strict=False)


def test_a_file_that_cannot_be_read_is_refused_all_the_same(folder: Path, alone: Processes) -> None:
    (folder / "val.json").write_text("[{]", encoding="utf-8")
    with pytest.raises(UserError, match="is not JSON"):
        open_folder(folder, alone, strict=False)


def test_a_long_list_of_names_is_cut_and_counted() -> None:
    names = [f"clip-{number}" for number in range(12)]
    sets = [ClipDataset([], None, frames=1, left_out=part) for part in (names[:8], names[4:])]  # type: ignore[arg-type]
    assert left_out_warnings(*sets)[0].endswith("12 clips, " + ", ".join(names[:10]) + " and 2 more")


def test_features_that_do_not_fit_a_model_are_refused_with_all_that_differs(folder: Path) -> None:
    store = FeatureStore([folder / "clean_feat.h5"])
    fitting = MODEL.model_copy(update={"text_width": 4, "image_width": 6})
    check_fit(fitting, store, 2, "logs/pointwise/a")
    check_fit(fitting.model_copy(update={"head": "flatten", "frames": 2}), store, 2, "logs/pointwise/a")
    with pytest.raises(UserError) as refused:
        check_fit(MODEL.model_copy(update={"head": "flatten", "frames": 5}), store, 2, "logs/pointwise/a")
    assert str(refused.value).startswith(
        "logs/pointwise/a: features do not fit its model: found text width 4, wanted 8; image width 6, wanted 8; "
        f"frame tokens a clip 2, wanted 5 ({folder / 'clean_feat.h5'}, data.frames=2); give "
    )
