"""The checks of clips and features before a stage trains."""

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from lr2ppo.cli import main
from lr2ppo.data import Clip, ClipDataset, FeatureStore, FeatureWriter, annotations
from lr2ppo.data.annotations import read_clips
from lr2ppo.data.features.layout import Sources
from lr2ppo.data.frames import frames_fingerprint, missing_frames
from lr2ppo.data.validate import CheckedClips, changed_frames, check_values, describe_clips, overlap, structure_faults
from lr2ppo.files import read_json, write_json
from lr2ppo.training.inputs import clip_warnings
from tests.helpers.fuzz import run_apart

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
        if isinstance(values, str) and values == "a group":
            file.create_group(name)
        elif values is not None:
            file[name] = values


def test_valid_features_have_no_fault(features: Path) -> None:
    store = FeatureStore([features])
    assert structure_faults(CLIPS, store, max_tokens=5) == []
    assert check_values(CLIPS, store)[0] == []


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("clip-1/text_emb", np.ones((3, 4)), r"found text_emb (3, 4) and img_emb (1, 2, 6), wanted [labels, tokens,"),
        ("clip-1/img_emb", np.ones((2, 6)), "found text_emb (3, 5, 4) and img_emb (2, 6), wanted"),
        ("clip-1/img_emb", np.ones((2, 1, 6)), "img_emb (2, 1, 6), wanted [labels, tokens, width] and [1, frames, wid"),
        ("clip-1/text_emb", None, "found text_emb None"),
        ("clip-1/text_len", np.ones(2, int), "found text_len (2,), wanted one number for each of 3 labels"),
        ("clip-1/text_emb", np.ones((2, 5, 4)), "found text_len (3,), wanted one number for each of 2 labels"),
        ("clip-1/img_emb", np.ones((1, 2, 7)), "found feature widths (4, 7), others have (4, 6)"),
        ("clip-1/img_emb", np.ones((1, 2, 0)), "img_emb (1, 2, 0), wanted [labels, tokens, width]"),
        ("clip-1/text_emb", np.ones((3, 0, 4)), "has features without text tokens"),
        ("clip-1/text_emb", 3.0, "found text_emb () and"),
        ("clip-1/text_emb", h5py.Empty("f"), "found text_emb None and"),
        ("clip-1/text_emb", np.ones((3, 5, 4), int), "text_emb: found int64, wanted floats"),
        ("clip-1/text_emb", np.full((3, 5, 4), "x", object), "text_emb: found object, wanted floats"),
        ("clip-1/text_emb", np.ones((3, 5, 4), bool), "text_emb: found bool, wanted floats"),
        ("clip-1/text_emb", np.ones((3, 5, 4), complex), "text_emb: found complex128, wanted floats"),
        ("clip-1/text_emb", np.ones((3, 5, 4), [("a", "f4")]), "wanted floats"),
        ("clip-1/img_emb", np.ones((1, 2, 6), np.uint16), "img_emb: found uint16, wanted floats"),
        ("clip-1/text_len", np.ones(3), "text_len: found float64, wanted whole numbers"),
        ("clip-1/text_emb", "a group", "text_emb: found a group, wanted an array"),
        ("clip-1/img_emb", np.dtype("f4"), "img_emb: found a datatype, wanted an array"),
        ("clip-1", np.ones(3), "has no features"),
    ],
)
def test_malformed_features_are_reported_with_what_was_found(
    features: Path, name: str, values: object, expected: str
) -> None:
    change(features, name, values)
    (fault,) = structure_faults(CLIPS, FeatureStore([features]))
    assert fault.clip == "clip-1"
    assert expected in str(fault)


def test_only_a_model_with_a_fixed_number_of_tokens_refuses_longer_texts(features: Path) -> None:
    store = FeatureStore([features])
    assert structure_faults(CLIPS, store, max_tokens=None) == []
    faults = structure_faults(CLIPS, store, max_tokens=4)
    assert str(faults[0]) == "clip clip-0: found 5 text tokens, the model takes 4"


def set_value(path: Path, name: str, value: float) -> None:
    with h5py.File(path, "a") as file:
        file[name][0, 0, 0] = value


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_reported_with_their_label(features: Path, value: float) -> None:
    set_value(features, "clip-2/text_emb", value)
    set_value(features, "clip-0/img_emb", value)
    assert [str(fault) for fault in check_values(CLIPS, FeatureStore([features]))[0]] == [
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
    (fault,) = check_values(CLIPS, FeatureStore([features]))[0]
    assert str(fault).startswith("clip clip-1: its features cannot be read: ")


@pytest.mark.parametrize("lengths", [[2, 5, 0], [2, 5, -1], [2, 6, 3], [-2, -2, -2], [0, 0, 0], [2, 5, 2**40]])
def test_lengths_of_no_token_or_of_too_many_are_reported(features: Path, lengths: list[int]) -> None:
    change(features, "clip-1/text_len", lengths)
    store = FeatureStore([features])
    assert structure_faults(CLIPS, store) == []
    faults = check_values(CLIPS, store)[0]
    assert str(faults[0]).startswith("clip clip-1: text_len: found ")


def test_numbers_beyond_float32_are_not_finite(features: Path) -> None:
    change(features, "clip-1/img_emb", np.full((1, 2, 6), 1e300))
    (fault,) = check_values(CLIPS, FeatureStore([features]))[0]
    assert fault.message == "frame features are not finite"


def test_an_array_that_was_never_written_is_reported_and_a_compressed_one_is_read(features: Path) -> None:
    with h5py.File(features, "a") as file:
        for name in ("clip-0", "clip-1", "clip-2"):
            del file[name]["img_emb"]
        file.create_dataset("clip-0/img_emb", shape=(1, 2, 6), dtype="f4")
        file.create_dataset("clip-1/img_emb", shape=(1, 2**40, 6), dtype="f4", chunks=(1, 2, 6), compression="gzip")
        file.create_dataset("clip-2/img_emb", data=np.ones((1, 900, 6), "f4"), compression="gzip")
    store = FeatureStore([features])
    assert [str(fault).partition(";")[0] for fault in structure_faults(CLIPS, store)] == [
        "clip clip-0: img_emb: found 0 bytes, wanted 48",
        f"clip clip-1: img_emb: found 0 bytes, wanted {24 * 2**40}",
    ]
    assert check_values(CLIPS[2:], store)[0] == []


def test_one_clip_of_another_width_does_not_make_the_others_look_at_fault(features: Path) -> None:
    change(features, "clip-0/img_emb", np.ones((1, 2, 7)))
    (fault,) = structure_faults(CLIPS, FeatureStore([features]))
    assert str(fault) == "clip clip-0: found feature widths (4, 7), others have (4, 6)"


def test_checked_clips_are_not_read_again_until_the_file_changes(features: Path) -> None:
    store = FeatureStore([features])
    assert CheckedClips(store).missing(CLIPS) == CLIPS
    CheckedClips(store).add(check_values(CLIPS[:2], store)[1])
    assert CheckedClips(store).missing(CLIPS) == CLIPS[2:]
    CheckedClips(store).add(check_values(CLIPS[2:], store)[1])
    assert CheckedClips(store).missing(CLIPS) == []
    os.utime(features, ns=(1, 1))
    assert CheckedClips(FeatureStore([features])).missing(CLIPS) == CLIPS


@pytest.mark.parametrize("way", ["within", "by another file"])
def test_features_that_change_but_keep_size_and_time_are_read_again(features: Path, way: str) -> None:
    store = FeatureStore([features])
    CheckedClips(store).add(check_values(CLIPS, store)[1])
    before = features.stat()
    if way == "by another file":
        shutil.copy(features, features.with_name("other"))
        features.with_name("other").replace(features)
    else:
        # As h5py writes it.
        features.write_bytes(features.read_bytes())
    os.utime(features, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (features.stat().st_size, features.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert CheckedClips(FeatureStore([features])).missing(CLIPS) == CLIPS


def test_a_record_that_comes_with_the_data_is_not_believed_and_none_is_written_there(features: Path) -> None:
    store, stat = FeatureStore([features]), features.stat()
    forged = {
        "files": [[features.name, stat.st_size, stat.st_mtime_ns]],
        "fingerprints": {clip.id: "0" * 16 for clip in CLIPS},
    }
    write_json(features.with_name(f".{features.name}.checked.json"), forged)
    before = sorted(features.parent.iterdir())
    assert CheckedClips(store).missing(CLIPS) == CLIPS
    CheckedClips(store).add(check_values(CLIPS, store)[1])
    assert sorted(features.parent.iterdir()) == before
    assert read_json(features.with_name(f".{features.name}.checked.json")) == forged


def test_where_no_cache_can_be_written_clips_are_checked_each_time(
    features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(features / "below a file"))
    store = FeatureStore([features])
    CheckedClips(store).add(check_values(CLIPS, store)[1])
    assert CheckedClips(store).missing(CLIPS) == CLIPS


def test_a_record_that_cannot_be_read_or_written_costs_a_check_and_no_more(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store = FeatureStore([features])
    CheckedClips(store).add(check_values(CLIPS, store)[1])
    (record,) = (tmp_path / "cache" / "lr2ppo" / "checked").iterdir()
    record.write_text("[1]", encoding="utf-8")
    assert CheckedClips(store).missing(CLIPS) == CLIPS
    # A folder in its place can be neither read nor replaced.
    record.unlink()
    (record / "inside").mkdir(parents=True)
    CheckedClips(store).add(check_values(CLIPS, store)[1])
    assert CheckedClips(store).missing(CLIPS) == CLIPS


def test_clips_frames_and_grades_are_counted() -> None:
    ungraded = Clip("x", ("a", "b"), images=("f/0.jpg", "f/1.jpg"))
    assert describe_clips([*CLIPS, ungraded]) == "4 clips; 11 labels, 2 to 3 a clip; grades 0: 3, 1: 3, 2: 3"
    assert overlap(CLIPS, [ungraded, CLIPS[2], CLIPS[0]]) == ["clip-0", "clip-2"]


def test_validation_clips_that_are_trained_on_are_named(features: Path) -> None:
    train, validation, other = (
        ClipDataset(clips, FeatureStore([features]), frames=1) for clips in (CLIPS[:2], CLIPS[1:], CLIPS[2:])
    )
    assert clip_warnings(train, validation, ["clip-0", "clip-1"]) == [
        "1 of the validation clips are trained on, such as clip-1"
    ]
    assert clip_warnings(train, other, ["clip-0", "clip-1"]) == []


def test_missing_frames_are_found(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "0.jpg").touch()
    assert missing_frames([Clip("x", ("a",), images=("f/0.jpg", "f/1.jpg"))], tmp_path) == ["f/1.jpg"]


def check(folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """The exit status, stdout and stderr of `lr2ppo check`."""
    status: object = 0
    try:
        main(["check", str(folder)])
    except SystemExit as ended:
        status = ended.code
    printed = capsys.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def folder(tiny_world: Path, tmp_path: Path) -> Path:
    """A complete folder without faults."""
    shutil.copytree(tiny_world, tmp_path / "data")
    return tmp_path / "data"


def change_clip(path: Path, **keys: object) -> None:
    """Change the first clip of an annotation file."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([entries[0] | keys, *entries[1:]]), encoding="utf-8")


def test_the_check_of_a_folder_continues_after_malformed_features(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(folder, capsys)[0] == 0
    change(folder / "clean_feat.h5", "source-1/text_emb", np.ones(3))
    change(folder / "clean_feat.h5", "test-1/img_emb", "a text")
    set_value(folder / "clean_feat.h5", "test-2/img_emb", np.nan)
    change_clip(folder / annotations.TEST, tags=[])
    status, printed, refused = check(folder, capsys)
    assert status == 2
    assert "clean_feat.h5\n    text of up to 4 tokens" in printed
    assert "4 faults found; training cannot start" in refused
    for fault in (
        "test_data.json: clip 0 (test-0): tags: found no labels",
        "first_stage_data.json: clip source-1: found text_emb (3,)",
        "clip test-1: ",
        "clip test-2: frame",
    ):
        assert fault in refused


def test_the_check_of_a_folder_names_each_file_that_it_refuses(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / annotations.TEST).unlink()
    os.mkfifo(folder / annotations.TEST)
    validation = folder / annotations.VALIDATION
    validation.write_bytes(b"\xef\xbb\xbf" + validation.read_bytes())
    with h5py.File(folder / "clean_feat.h5", "a") as file:
        del file["source-1/text_emb"]
        file.create_dataset("source-1/text_emb", (6, 4, 8), "f4", external=[("secret", 0, 768)])

    def run() -> None:
        # Nobody writes to the pipe: reading from it would wait for ever.
        signal.alarm(60)
        status, _, refused = check(folder, capsys)
        assert status == 2
        assert "2 faults found; training cannot start" in refused
        assert "test_data.json: cannot be read: is a named pipe, wanted a regular file" in refused
        assert "clean_feat.h5: 'source-1/text_emb': found an array whose numbers are in other files" in refused

    run_apart(run)


def test_a_folder_of_a_name_that_cannot_be_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, refused = check(Path("n" * 300), capsys)
    assert status == 2
    assert "no such folder" in refused


def test_the_check_of_a_folder_names_frames_that_cannot_be_encoded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text.jpg").write_text("no image", encoding="utf-8")
    change_clip(folder / annotations.TEST, image=["text.jpg", "../outside.jpg", "gone.jpg"])
    status, printed, refused = check(folder, capsys)
    assert status == 2
    assert f"2 of 3 frames are not under {folder}, such as ../outside.jpg" in printed
    assert "2 faults found; training can start, but these frames cannot be encoded" in refused
    assert "clip test-0: text.jpg is not an image" in refused
    assert "clip test-0: ../outside.jpg is at " in refused


def test_the_check_of_a_folder_warns_about_pairs_that_contradict_grades(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tags = [{"tag": f"label {label}", "target": label // 2} for label in range(6)]
    assert "higher grade" not in check(folder, capsys)[1]
    for pair in ([0, 5], [0, 1]):
        change_clip(folder / annotations.TARGET_PAIRS, tags=tags, index=[[5, 0], pair])
        status, printed, _ = check(folder, capsys)
        assert status == 0
        assert "has pairs whose first label has no higher grade, as in clip target-0" in printed


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"tags": [{"tag": f"label {label}"} for label in reversed(range(6))]}, "labels"),
        ({"description": "another"}, "descriptions"),
        ({"image": ["other.jpg"]}, "frames"),
    ],
)
def test_the_check_of_a_folder_names_clips_that_two_files_have_with_other_contents(
    folder: Path, capsys: pytest.CaptureFixture[str], keys: dict[str, object], what: str
) -> None:
    change_clip(folder / annotations.TARGET_PAIRS, **keys)
    status, _, refused = check(folder, capsys)
    assert status == 2
    assert (
        f"clip target-0: {annotations.TARGET_PAIRS} and {annotations.TARGET_TRAIN} have it with different {what}; "
        in (refused)
    )


def test_the_check_of_a_folder_names_ids_that_only_look_the_same(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change_clip(folder / annotations.TARGET_PAIRS, id="caf\u00e9")
    change_clip(folder / annotations.TARGET_TRAIN, id="cafe\u0301")
    _, _, refused = check(folder, capsys)
    assert f"in {annotations.TARGET_TRAIN}, it looks like clip 'caf\\xe9' of {annotations.TARGET_PAIRS}, but" in refused


@pytest.fixture
def framed(tmp_path: Path) -> tuple[list[Clip], Path]:
    """Three clips of two frames each, and a file whose features name what they were made from."""
    clips = [Clip(f"clip-{i}", ("a", "b"), images=(f"{i}/0.jpg", f"{i}/1.jpg")) for i in range(3)]
    for shade, image in enumerate(image for clip in clips for image in clip.images):
        (tmp_path / image).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4), 40 * shade).save(tmp_path / image)
    with FeatureWriter(tmp_path / "clean_feat.h5", {}) as writer:
        for clip in clips:
            text = [np.ones((2, 4), np.float32)] * 2
            sources = Sources(clip.text_fingerprint(), frames_fingerprint(clip, tmp_path), clip.images_fingerprint())
            writer.write(clip.id, text, np.ones((2, 6), np.float32), sources=sources)
    return clips, tmp_path / "clean_feat.h5"


def test_clips_that_name_other_frames_than_their_features_are_found_without_pictures(
    framed: tuple[list[Clip], Path],
) -> None:
    clips, features = framed
    shutil.rmtree(features.parent / "1")
    store = FeatureStore([features])
    assert structure_faults(clips, store) == []
    exchanged = [replace(clips[0], images=clips[1].images), replace(clips[1], images=clips[1].images[:1]), clips[2]]
    assert [str(fault) for fault in structure_faults(exchanged, store)] == [
        "clip clip-0: has features of other frames than it names",
        "clip clip-1: has features of 2 frames, but names 1",
    ]


def test_a_file_that_does_not_say_which_frames_were_named_is_read(framed: tuple[list[Clip], Path]) -> None:
    clips, features = framed
    now = FeatureStore([features]).sources("clip-0")
    assert now is not None
    with h5py.File(features, "a") as file:
        for clip in clips:
            del file[clip.id].attrs["images_source"]
    store = FeatureStore([features])
    renamed = replace(clips[0], images=("x", "y"))
    assert structure_faults([renamed, *clips[1:]], store) == []
    then = store.sources("clip-0")
    assert then == replace(now, images=None)
    assert then.agree(now)
    assert not now.agree(replace(now, images="others"))
    assert not then.agree(replace(now, frames="others"))


def test_pictures_that_have_changed_are_found_and_missing_ones_are_not_needed(framed: tuple[list[Clip], Path]) -> None:
    clips, features = framed
    store = FeatureStore([features])
    assert changed_frames(clips, store, features.parent) == []
    Image.new("RGB", (9, 7)).save(features.parent / clips[0].images[1])
    (features.parent / clips[1].images[0]).unlink()
    assert [fault.clip for fault in changed_frames(clips, store, features.parent)] == ["clip-0"]


def test_pictures_outside_the_folder_are_not_read_to_compare_them(
    framed: tuple[list[Clip], Path], tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips, features = framed
    secret = tmp_path_factory.mktemp("home") / "secret.png"
    secret.write_bytes((features.parent / clips[0].images[0]).read_bytes())
    opened: list[Path] = []
    monkeypatch.setattr("lr2ppo.data.frames.file_fingerprint", opened.append)
    changed_frames([replace(clips[0], images=(str(secret),))], FeatureStore([features]), features.parent)
    assert opened == []


def test_the_check_of_a_folder_reads_the_pictures_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(folder / "clean_feat.h5", "a") as file:
        frames = file["test-0/img_emb"].shape[1]
    shades = [f"{shade}.png" for shade in range(frames)]
    for shade, name in enumerate(shades):
        Image.new("L", (8, 8), shade).save(folder / name)
    change_clip(folder / annotations.TEST, image=shades)
    clip = read_clips(folder / annotations.TEST)[0]
    with h5py.File(folder / "clean_feat.h5", "a") as file:
        for name, value in (("text", clip.text_fingerprint()), ("frames", frames_fingerprint(clip, folder))):
            file["test-0"].attrs[f"{name}_source"] = np.bytes_(value.encode())
    assert check(folder, capsys)[0] == 0
    Image.new("L", (8, 8), 99).save(folder / shades[0])
    status, _, refused = check(folder, capsys)
    assert status == 2
    assert "clip test-0: its frames have changed since its features were made" in refused
