"""Extraction by one or several processes: every clip once, even if stopped and resumed by another number of them."""

import json
import os
import re
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lr2ppo.cli import main
from lr2ppo.data import Clip, FeatureStore, FeatureWriter, annotations, read_clips, write_clips
from lr2ppo.data.captions import read_captions
from lr2ppo.data.features.store import find_feature_files
from lr2ppo.data.features.writer import StoredType, read_clip_names
from lr2ppo.data.mini import SIZES, write_mini
from lr2ppo.data.validate import structure_faults
from lr2ppo.distributed.processes import Processes
from lr2ppo.encoders import extract, pretrain
from lr2ppo.encoders.extract import find_clips, find_share
from lr2ppo.errors import UserError
from tests.helpers.fuzz import run_apart
from tests.helpers.workspace import Workspace

T = TypeVar("T")
METADATA: dict[str, str | int] = {"text_encoder": "tiny@1", "tokens_per_frame": 1}
DTYPE: StoredType = "float32"
# Some are nested, and one is a path prefix of others.
IDS = ["tt1", *(f"tt1/shot-{number}" for number in range(9)), *(f"flat-{number}" for number in range(11)), "a/b"]
CLIPS = [Clip(clip_id, ("label",)) for clip_id in IDS]


def features(clip: Clip) -> tuple[list[NDArray[np.float32]], NDArray[np.float32]]:
    rng = np.random.default_rng(IDS.index(clip.id))
    return [rng.normal(size=(2, 3)).astype(np.float32)], rng.normal(size=(2, 5)).astype(np.float32)


def run_job(clips: list[Clip], out: Path, processes: int, stopped_after: list[int] | None = None) -> list[str]:
    """Run a job whose processes all read the existing files before any writes; returns the ids written by all."""
    shares = [find_share(clips, out, METADATA, DTYPE, rank, processes) for rank in range(processes)]
    written = []
    for share, most in zip(shares, stopped_after or [len(clips)] * processes, strict=False):
        assert share.missing == sum(len(other.clips) for other in shares)
        if share.clips:
            with FeatureWriter(share.path, METADATA, DTYPE) as writer:
                for clip in share.clips[:most]:
                    writer.write(clip.id, *features(clip))
                    written.append(clip.id)
    return written


def store_of(out: Path) -> FeatureStore:
    return FeatureStore(find_feature_files(out.parent, [f"{out.stem}*{out.suffix}"]))


# A job: its number of processes, the number of clips after which each stops, and the number of clips annotated.
jobs = st.tuples(
    st.integers(1, 4), st.lists(st.integers(0, 6), min_size=4, max_size=4), st.sampled_from([5, 14, len(CLIPS)])
)


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(stopped=st.lists(jobs, max_size=4), last=st.integers(1, 4))
def test_stopped_jobs_of_any_number_of_processes_together_write_every_clip_once(
    tmp_path_factory: pytest.TempPathFactory,
    stopped: list[tuple[int, list[int], int]],
    last: int,
) -> None:
    out = tmp_path_factory.mktemp("jobs") / "clean_feat.h5"
    written = []
    for processes, after, known in stopped:
        written += run_job(CLIPS[-known:], out, processes, after)
    written += run_job(CLIPS, out, last)
    assert Counter(written) == Counter(IDS)
    held = [name for path in out.parent.iterdir() for name in read_clip_names(path, METADATA, DTYPE)]
    assert len(held) == len(set(held)) == len(IDS)
    store = store_of(out)
    for clip in CLIPS:
        text, frames = features(clip)
        np.testing.assert_array_equal(store.text(clip.id, [0])[0][0], text[0])
        np.testing.assert_array_equal(store.frames(clip.id)[:, 0], frames)
    assert run_job(CLIPS, out, 3) == []


def test_shares_are_even_with_any_existing_files(tmp_path: Path) -> None:
    out = tmp_path / "clean_feat.h5"
    run_job(CLIPS[:6], out, 2)
    shares = [find_share(CLIPS, out, METADATA, DTYPE, rank, 4) for rank in range(4)]
    assert [len(share.clips) for share in shares] == [4, 4, 4, 4]
    assert [share.path.name for share in shares] == [f"clean_feat-0{rank}-of-04.h5" for rank in range(4)]


def test_one_process_writes_the_file_itself(tmp_path: Path) -> None:
    run_job(CLIPS, tmp_path / "clean_feat.h5", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["clean_feat.h5"]


def test_files_of_another_name_do_not_count(tmp_path: Path) -> None:
    run_job(CLIPS, tmp_path / "clean_feat-old.h5", 1)
    run_job(CLIPS, tmp_path / "other_feat.h5", 2)
    assert find_share(CLIPS, tmp_path / "clean_feat.h5", METADATA, DTYPE).missing == len(CLIPS)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(
    ("metadata", "dtype"), [(METADATA | {"text_encoder": "tiny@2"}, "float32"), (METADATA, "bfloat16")]
)
def test_no_process_adds_to_files_with_other_metadata(
    tmp_path: Path, processes: int, metadata: dict[str, str | int], dtype: StoredType
) -> None:
    out = tmp_path / "clean_feat.h5"
    run_job(CLIPS[:6], out, 2)
    with pytest.raises(UserError, match=r"clean_feat-00-of-02\.h5: holds features made with .*--out"):
        find_share(CLIPS, out, metadata, dtype, 0, processes)


def test_a_shard_cut_short_is_refused_and_named(tmp_path: Path) -> None:
    out = tmp_path / "clean_feat.h5"
    run_job(CLIPS, out, 2)
    shard = tmp_path / "clean_feat-01-of-02.h5"
    shard.write_bytes(shard.read_bytes()[:-500])
    with pytest.raises(UserError, match=r"clean_feat-01-of-02\.h5: is not a whole HDF5 file.*remove"):
        find_share(CLIPS, out, METADATA, DTYPE, 0, 4)


@pytest.mark.parametrize("name", ["clean_feat.h5", "clean_feat-01-of-02.h5"])
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_an_output_or_a_shard_that_is_no_regular_file_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    make = os.mkfifo if kind == "pipe" else os.mkdir
    make(tmp_path / name)

    def check() -> None:
        # Nobody writes to the pipe: reading from it would wait for ever.
        signal.alarm(20)
        with pytest.raises(UserError, match=f"{name}: .* wanted a regular file"):
            find_share(CLIPS, tmp_path / "clean_feat.h5", METADATA, DTYPE)

    run_apart(check)


def test_a_shard_that_leads_to_another_file_is_refused(tmp_path: Path) -> None:
    run_job(CLIPS[:6], tmp_path / "clean_feat.h5", 2)
    with h5py.File(tmp_path / "clean_feat-01-of-02.h5", "a") as file:
        file["flat-9"] = h5py.ExternalLink("elsewhere.h5", "/")
    with pytest.raises(UserError, match=r"clean_feat-01-of-02\.h5: 'flat-9': found a link to another file"):
        find_share(CLIPS, tmp_path / "clean_feat.h5", METADATA, DTYPE, 0, 3)


def test_an_annotation_file_that_is_a_pipe_is_refused_and_not_left_out(tmp_path: Path) -> None:
    write_clips(tmp_path / annotations.TEST, CLIPS)
    os.mkfifo(tmp_path / annotations.VALIDATION)

    def check() -> None:
        signal.alarm(20)
        with pytest.raises(UserError, match=r"val_data\.json: cannot be read: is a named pipe"):
            find_clips(tmp_path)

    run_apart(check)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The project with a few clips in data/tiny and untrained encoders in pretrained_models/tiny."""
    made = Workspace.make(tmp_path_factory.mktemp("extract"))
    data = made.root / "data" / "tiny"
    write_mini(data, seed=5, sizes=dict.fromkeys(SIZES, 3) | {"pretraining": 40})
    torch.manual_seed(0)
    captions = read_captions(data, 100, np.random.default_rng(0))
    tokenizer = pretrain.build_tokenizer([*captions.captions, *captions.texts, *captions.words], 500)
    text = pretrain.build_text_model(len(tokenizer), width=32, layers=1, heads=2, max_tokens=40)
    vit, shape = pretrain.build_image_model(width=32, layers=1, heads=2, size=64, patch=8)
    pretrain.save(made.root / "pretrained_models" / "tiny", text, tokenizer, vit, shape)
    return made


def arguments(workspace: Workspace, out: Path, *more: str, data: Path | None = None) -> list[str]:
    encoders = workspace.root / "pretrained_models" / "tiny"
    return [
        *("--data", str(data or workspace.root / "data" / "tiny"), "--text", str(encoders / "roberta")),
        *("--image", str(encoders / "vit"), "--device", "cpu", "--out", str(out), *more),
    ]


def run_alone(workspace: Workspace, out: Path, *more: str, data: Path | None = None) -> None:
    """Run the command in this process only."""
    main(["extract", *arguments(workspace, out, *more, data=data)])


@pytest.fixture(scope="module")
def by_one(workspace: Workspace) -> FeatureStore:
    """The features that one process extracts."""
    out = workspace.root / "by_one" / "clean_feat.h5"
    run_alone(workspace, out)
    return FeatureStore([out])


@pytest.mark.slow
def test_two_processes_write_the_features_that_one_writes_and_one_resumes(
    workspace: Workspace, by_one: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clean_feat.h5"
    printed = workspace.run("sh", "scripts/extract.sh", *arguments(workspace, out), processes=2)
    assert printed.returncode == 0, printed.stderr
    assert printed.stdout.count("clips") == 1
    assert "clean_feat-00-of-02.h5: wrote 6 clips, its share of 12, 0 were there already" in printed.stdout
    names = {path.name: set(h5py.File(path)) for path in sorted(tmp_path.glob("clean_feat*"))}
    assert [(name, len(clips)) for name, clips in names.items()] == [
        ("clean_feat-00-of-02.h5", 6),
        ("clean_feat-01-of-02.h5", 6),
    ]
    (setting,) = re.findall(r"data\.features=\[(.*)\]", printed.stdout)
    together = FeatureStore(find_feature_files(tmp_path, setting.split(", ")))
    for clip in find_clips(workspace.root / "data" / "tiny"):
        labels = range(len(clip.labels))
        np.testing.assert_allclose(together.text(clip.id, labels)[0], by_one.text(clip.id, labels)[0], atol=1e-5)
        np.testing.assert_allclose(together.frames(clip.id), by_one.frames(clip.id), atol=1e-5)
    (tmp_path / "clean_feat-01-of-02.h5").unlink()
    capsys.readouterr()
    run_alone(workspace, out)
    text = capsys.readouterr().out
    assert f"{out}: wrote 6 clips, 6 were there already" in text
    assert "data.features=[clean_feat.h5, clean_feat-*-of-*.h5]" in text
    assert set(h5py.File(out)) == names["clean_feat-01-of-02.h5"]


def test_a_process_writes_only_after_all_have_read_the_existing_files(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Second(Processes):
        """The second of two processes; the first writes right after they synchronise for the last time."""

        def gather(self, value: T) -> list[T]:
            assert not list(tmp_path.iterdir())
            if shares:
                with FeatureWriter(tmp_path / "clean_feat-00-of-02.h5", {}) as writer:
                    writer.write("test-0000", *features(CLIPS[0]))
            return [value, value]

    def find_and_note(*arguments: Any) -> extract.Share:
        shares.append(find_share(*arguments))
        return shares[0]

    shares: list[extract.Share] = []
    monkeypatch.setattr(extract, "find_share", find_and_note)

    @contextmanager
    def join_processes(device: str) -> Iterator[Processes]:
        yield Second(rank=1, world_size=2, device=torch.device(device))

    monkeypatch.setattr(extract, "join_processes", join_processes)
    capsys.readouterr()
    run_alone(workspace, tmp_path / "clean_feat.h5")
    assert capsys.readouterr().out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clean_feat-00-of-02.h5", "clean_feat-01-of-02.h5"]
    ids = [clip.id for clip in find_clips(workspace.root / "data" / "tiny")]
    assert set(h5py.File(tmp_path / "clean_feat-01-of-02.h5")) == set(ids[1::2])


@pytest.mark.parametrize("changed", ["description", "labels", "frame", "names", "nothing"])
def test_clips_that_have_changed_are_extracted_again(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: str
) -> None:
    data = shutil.copytree(workspace.root / "data" / "tiny", tmp_path / "data", ignore=shutil.ignore_patterns("*.h5"))
    out = tmp_path / "clean_feat.h5"
    run_alone(workspace, out, data=data)
    before = FeatureStore([Path(shutil.copy(out, tmp_path / "before.h5"))])
    clip = "test-0001"
    clips = json.loads((data / "test_data.json").read_text(encoding="utf-8"))
    entry = next(each for each in clips if each["id"] == clip)
    if changed == "description":
        entry["description"] = "another story"
    elif changed == "labels":
        entry["tags"].reverse()
    elif changed == "frame":
        shutil.copy(data / "frames" / "test-0000" / "0000.jpg", data / "frames" / clip / "0000.jpg")
    elif changed == "names":
        entry["image"] = entry["image"][::-1]
    (data / "test_data.json").write_text(json.dumps(clips), encoding="utf-8")
    if changed in ("description", "labels", "names"):
        (fault,) = structure_faults(read_clips(data / "test_data.json"), before)
        what = "frames than it names" if changed == "names" else "labels, or of another description"
        assert str(fault) == f"clip {clip}: has features of other {what}"
    capsys.readouterr()
    run_alone(workspace, out, data=data)
    printed = capsys.readouterr().out
    after = FeatureStore([out])
    if changed == "nothing":
        assert "wrote 0 clips, 12 were there already" in printed
    else:
        assert f"{out}: 1 clip has changed since, and is extracted again: {clip}" in printed
        assert "wrote 1 clips, 11 were there already" in printed
    assert structure_faults(read_clips(data / "test_data.json"), after) == []
    same = np.array_equal(before.text(clip, [0])[0], after.text(clip, [0])[0])
    same_frames = np.array_equal(before.frames(clip), after.frames(clip))
    assert (same, same_frames) == (
        changed in ("frame", "names", "nothing"),
        changed not in ("frame", "names"),
    )


def test_faults_are_reported_before_anything_is_written(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_alone(workspace, tmp_path / "clean_feat.h5", "--frames-root", str(tmp_path / "gone"))
    assert ended.value.code == 2
    assert "12 faults found; check --frames-root" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_frames_that_cannot_be_encoded_are_named_before_anything_is_written(
    workspace: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = workspace.root / "data" / "tiny"
    shutil.copytree(data / "frames", tmp_path / "root" / "frames")
    text, link = (tmp_path / "root" / "frames" / clip / "0001.jpg" for clip in ("test-0000", "test-0002"))
    text.write_text("no image", encoding="utf-8")
    link.unlink()
    link.symlink_to(data / "frames" / "test-0002" / "0001.jpg")
    with pytest.raises(SystemExit) as ended:
        run_alone(workspace, tmp_path / "out" / "clean_feat.h5", "--frames-root", str(tmp_path / "root"))
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert "2 faults found; check --frames-root, or replace these frames" in message
    assert "clip test-0000: frames/test-0000/0001.jpg is not an image of the formats" in message
    assert "clip test-0002: frames/test-0002/0001.jpg is at " in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("others_fault", "own_fault", "reports"), [(True, True, False), (True, False, False), (False, True, True)]
)
def test_one_process_with_a_fault_reports_it_and_all_exit(
    monkeypatch: pytest.MonkeyPatch, others_fault: bool, own_fault: bool, reports: bool
) -> None:
    def work(processes: Processes) -> None:
        with extract.report_once(processes):
            if own_fault:
                raise UserError("the fault")

    def gather(_: Processes, value: bool) -> list[bool]:
        gathered.append(value)
        return [others_fault, value]

    gathered: list[bool] = []
    monkeypatch.setattr(Processes, "gather", gather)
    monkeypatch.setattr(extract, "SECONDS_TO_REPORT", 0)
    with pytest.raises(UserError if reports else SystemExit) as ended:
        work(Processes(rank=1, world_size=2, device=torch.device("cpu")))
    assert str(ended.value) == ("the fault" if reports else "2")
    assert gathered == [own_fault]


def test_features_of_16_bits_are_those_of_32_bits_rounded(
    workspace: Workspace, by_one: FeatureStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_alone(workspace, tmp_path / "half.h5", "--dtype", "bfloat16")
    text = capsys.readouterr().out
    assert "half.h5: wrote 12 clips, 0 were there already" in text
    assert "data.features" not in text
    half = FeatureStore([tmp_path / "half.h5"])
    np.testing.assert_array_equal(
        half.frames("test-0000"), torch.from_numpy(by_one.frames("test-0000")).bfloat16().float()
    )
    with pytest.raises(SystemExit):
        run_alone(workspace, tmp_path / "half.h5")
    assert "dtype bfloat16, now asked for" in capsys.readouterr().err
