"""What is checked of clips and features before a stage trains."""

import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from lr2ppo.data import Clip, ClipDataset, FeatureStore, FeatureWriter
from lr2ppo.data.check import SoundClips, overlap, structure_faults, value_faults
from lr2ppo.data.check_folder import describe_clips, missing_frames
from lr2ppo.engine.inputs import overlap_note

CLIPS = [Clip(f"clip-{i}", ("a", "b", "c"), grades=np.array([0, 1, 2])) for i in range(3)]


@pytest.fixture
def features(tmp_path: Path) -> Path:
    with FeatureWriter(tmp_path / "clean_feat.h5", {}) as writer:
        for clip in CLIPS:
            text = [np.ones((tokens, 4), np.float32) for tokens in (2, 5, 3)]
            writer.write(clip.id, text, np.ones((2, 6), np.float32))
    return tmp_path / "clean_feat.h5"


def change(path: Path, name: str, values: object) -> None:
    with h5py.File(path, "a") as file:
        del file[name]
        if values is not None:
            file[name] = values


def test_sound_features_have_no_fault(features: Path) -> None:
    store = FeatureStore([features])
    assert structure_faults(CLIPS, store, most_tokens=5) == []
    assert value_faults(CLIPS, store) == []


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("clip-1/text_emb", np.ones((3, 4)), r"found text_emb (3, 4) and img_emb (1, 2, 6), wanted [labels, tokens,"),
        ("clip-1/img_emb", np.ones((2, 6)), "found text_emb (3, 5, 4) and img_emb (2, 6), wanted"),
        ("clip-1/img_emb", np.ones((2, 1, 6)), "img_emb (2, 1, 6), wanted [labels, tokens, width] and [1, frames, wid"),
        ("clip-1/text_emb", None, "found text_emb None"),
        ("clip-1/text_len", np.ones(2, int), "found text_len (2,), wanted one number for each of 3 labels"),
        ("clip-1/text_emb", np.ones((2, 5, 4)), "found text_len (3,), wanted one number for each of 2 labels"),
        ("clip-1/img_emb", np.ones((1, 2, 7)), "found feature widths (4, 7), others have (4, 6)"),
        ("clip-1/img_emb", np.ones((1, 0, 6)), "has features of no frame"),
    ],
)
def test_malformed_features_are_told_with_what_was_found(features: Path, name: str, values: object, told: str) -> None:
    change(features, name, values)
    faults = structure_faults(CLIPS, FeatureStore([features]))
    assert len(faults) == 1
    assert faults[0].startswith("clip clip-1: ")
    assert told in faults[0]


def test_only_a_model_with_a_fixed_number_of_tokens_minds_longer_texts(features: Path) -> None:
    store = FeatureStore([features])
    assert structure_faults(CLIPS, store, most_tokens=None) == []
    faults = structure_faults(CLIPS, store, most_tokens=4)
    assert faults[0] == "clip clip-0: found 5 text tokens, the model takes 4"


def set_value(path: Path, name: str, value: float) -> None:
    with h5py.File(path, "a") as file:
        file[name][0, 0, 0] = value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_told_with_their_label(features: Path, value: float) -> None:
    set_value(features, "clip-2/text_emb", value)
    set_value(features, "clip-0/img_emb", value)
    assert value_faults(CLIPS, FeatureStore([features])) == [
        "clip clip-0: frame features are not finite",
        "clip clip-2: text features of 'a' are not finite",
    ]


def test_damaged_data_are_a_fault_and_no_crash(features: Path) -> None:
    with h5py.File(features, "a") as file:
        del file["clip-1/text_emb"]
        file.create_dataset("clip-1/text_emb", data=np.random.default_rng(0).normal(size=(3, 5, 4)), compression="gzip")
        place = file["clip-1/text_emb"].id.get_chunk_info(0)
    with features.open("r+b") as raw:
        raw.seek(place.byte_offset)
        raw.write(b"\0" * place.size)
    faults = value_faults(CLIPS, FeatureStore([features]))
    assert len(faults) == 1
    assert faults[0].startswith("clip clip-1: its features cannot be read: ")


def test_clips_found_sound_are_not_read_again_until_the_file_changes(features: Path) -> None:
    store = FeatureStore([features])
    assert SoundClips(store).missing(CLIPS) == CLIPS
    SoundClips(store).add(CLIPS[:2])
    assert SoundClips(store).missing(CLIPS) == CLIPS[2:]
    SoundClips(store).add(CLIPS[2:])
    assert SoundClips(store).missing(CLIPS) == []
    os.utime(features, ns=(1, 1))
    assert SoundClips(FeatureStore([features])).missing(CLIPS) == CLIPS


def test_a_record_that_cannot_be_read_or_written_costs_a_check_and_no_more(
    features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore([features])
    SoundClips(store).add(CLIPS)
    (record,) = features.parent.glob(".*.checked.json")
    record.write_text("[1]", encoding="utf-8")
    assert SoundClips(store).missing(CLIPS) == CLIPS

    def refuse(path: Path, value: object) -> None:
        raise PermissionError(path)

    monkeypatch.setattr("lr2ppo.data.check.write_json", refuse)
    SoundClips(store).add(CLIPS)
    assert SoundClips(store).missing(CLIPS) == CLIPS


def test_clips_frames_and_grades_are_counted() -> None:
    ungraded = Clip("x", ("a", "b"), images=("f/0.jpg", "f/1.jpg"))
    assert describe_clips([*CLIPS, ungraded]) == "4 clips; 11 labels, 2 to 3 a clip; grades 0: 3, 1: 3, 2: 3"
    assert overlap(CLIPS, [ungraded, CLIPS[2], CLIPS[0]]) == ["clip-0", "clip-2"]


def test_validation_clips_that_are_trained_on_are_named(features: Path) -> None:
    train, validation, other = (
        ClipDataset(clips, FeatureStore([features]), frames=1) for clips in (CLIPS[:2], CLIPS[1:], CLIPS[2:])
    )
    assert overlap_note(train, validation).endswith("1 of the validation clips are trained on, such as clip-1")
    assert overlap_note(train, other) == ""


def test_missing_frames_are_found(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "0.jpg").touch()
    assert missing_frames([Clip("x", ("a",), images=("f/0.jpg", "f/1.jpg"))], tmp_path) == ["f/1.jpg"]
