"""Links in the folders of others: what a command writes into a folder stays there, and a user's own links work."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from lr2ppo.cli import main
from lr2ppo.data import Clip, annotations, write_clips
from lr2ppo.files import check_no_links
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.published import write_published
from lr2ppo.models.weights import save_model
from tests.conftest import REPOSITORY
from tests.helpers.untrained_world import SHAPE, make_untrained_world

MINI = REPOSITORY / "configs" / "mini"
FINETUNE = f"train finetune --config {MINI}/finetune.yaml data.root=data device=cpu data.workers=0 train.epochs=1"
EVALUATE = (
    f"evaluate --config {MINI}/evaluate.yaml name=pointwise/one root=data device=cpu workers=0 bootstrap_samples=20"
)
TRAIN = f"train pointwise --config {MINI}/pointwise.yaml data.root=data device=cpu data.workers=0 train.epochs=1"
RESUME = f"{TRAIN} name=half"
PPO = f"{TRAIN} name=new reward=one data.frames={SHAPE.frames}".replace("pointwise", "ppo") + " ranker=pointwise/one"
ENCODERS = "--text encoders/roberta --image encoders/vit --device cpu"
FLAT = {"head": "flatten", "attention": "published", "heads": 8, "text_tokens": 5}
PUBLISHED = (
    f"published model.bin logs/pointwise/new --text-tokens 5 --frames {SHAPE.frames} --config {MINI}/pointwise.yaml"
)
# A command, and a path that it would write or remove if there is no link.
COMMANDS = [
    (EVALUATE, "logs/pointwise/one/results.json"),
    (EVALUATE, "logs/pointwise/one/cases.json"),
    (EVALUATE, "logs/pointwise/one/.results.lock"),
    (EVALUATE, "logs/pointwise/one/report.html"),
    (f"{TRAIN} name=new", "logs/pointwise/.new.lock"),
    (f"{TRAIN} name=one", "logs/pointwise/one/checkpoints"),
    (RESUME, "logs/pointwise/half/metrics.jsonl"),
    (RESUME, "logs/pointwise/half/train.log"),
    (RESUME, "logs/pointwise/half/best"),
    (RESUME, "logs/pointwise/half/best/model.safetensors"),
    (RESUME, "logs/pointwise/half/checkpoints"),
    (PPO, "logs/cache"),
    ("report ppo/one", "report.html"),
    ("pretrain --data data --out encoders --device cpu", "encoders/vit"),
    (PUBLISHED, "logs/pointwise/new/best"),
    (PUBLISHED, "logs/pointwise/new/finished.json"),
]
# A user who is no superuser.
ORDINARY = os.geteuid() or 65534
# These load encoders.
SLOW = [
    (f"extract --data clips {ENCODERS}", "clips/clean_feat.h5"),
    (f"extract --data clips {ENCODERS}", "clips/clean_feat-00-of-02.h5"),
    ("rank ppo/one --annotations clips/test_data.json --out ranked.jsonl", "ranked.jsonl.run.json"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_world: Path) -> Path:
    root = tmp_path_factory.mktemp("made")
    shutil.copytree(tiny_world, root / "data")
    make_untrained_world(root, root / "data")
    shutil.copytree(root / "logs" / "pointwise" / "one", root / "logs" / "pointwise" / "half")
    (root / "logs" / "pointwise" / "half" / "finished.json").unlink()
    for name in (annotations.SOURCE_TRAIN, annotations.TEST):
        write_clips(root / "clips" / name, [Clip("a", ("car", "sky"), grades=np.array([1, 0]), description="a car")])
    save_model(root / "flat", RelevanceRanker(SHAPE.model_copy(update=FLAT)))
    write_published(root / "flat", root / "model.bin")
    return root


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of a folder that every command line runs in, and beside it `outside`."""
    shutil.copytree(made, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    checkpoint = tmp_path / "outside" / "folder" / "step-0000001-00000"
    checkpoint.mkdir(parents=True)
    for path in (tmp_path / "outside" / "file", checkpoint / "state.json"):
        path.write_bytes(b"precious")
    return tmp_path / "world"


def content(folder: Path) -> Iterator[tuple[Path, bytes | None]]:
    for path in sorted(folder.rglob("*")):
        yield path, path.read_bytes() if path.is_file() else None


@pytest.mark.parametrize(("line", "name"), [*COMMANDS, *(pytest.param(*each, marks=pytest.mark.slow) for each in SLOW)])
def test_a_link_in_a_folder_is_refused_in_one_message_and_nothing_outside_changes(
    world: Path, line: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    outside = world.parent / "outside"
    link = world / name
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_dir():
        shutil.rmtree(link)
    link.unlink(missing_ok=True)
    link.symlink_to(outside / ("file" if link.suffix else "folder"))
    before = list(content(outside))
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    message = capfd.readouterr().err
    assert ended.value.code == 2, message
    assert message.count("error: ") == 1, message
    assert "Traceback" not in message
    assert Path(name).name in message
    assert "a link" in message
    assert list(content(outside)) == before


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (EVALUATE, "logs/pointwise/one/.results.lock"),
        (f"{TRAIN} name=new", "logs/pointwise/.new.lock"),
        (RESUME, "logs/pointwise/.half.lock"),
        (RESUME, "logs/pointwise/half/metrics.jsonl"),
        (RESUME, "logs/pointwise/half/train.log"),
        (RESUME, "logs/pointwise/half/any"),
    ],
)
def test_a_file_that_has_a_name_outside_the_folder_is_not_changed(
    world: Path, line: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """An unpacked archive can give a file of the user another name in the folder, which is no symbolic link."""
    outside, path = world.parent / "outside" / "file", world / name
    path.unlink(missing_ok=True)
    path.hardlink_to(outside)
    before = list(content(outside.parent))
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    message = capfd.readouterr().err
    assert ended.value.code == 2, message
    assert list(content(outside.parent)) == before
    assert f"{path.name}: is a hard link, one of 2 names of a file" in message


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (f"{FINETUNE} name=new ranker=one", "logs/pointwise/one/best"),
        (f"{FINETUNE} name=new ranker=one", "logs/pointwise/one/best/model.safetensors"),
        (EVALUATE, "logs/pointwise/one/best"),
        (EVALUATE, "logs/pointwise/one/best/config.json"),
        ("published logs/pointwise/one out --to-published", "logs/pointwise/one/best/model.safetensors"),
        ("export pointwise/one out", "logs/pointwise/one/best/model.safetensors"),
        ("export exported out", "exported/model.safetensors"),
        ("export exported out", "exported/reward"),
        ("export exported out", "exported/before"),
        ("export exported out", "exported/before/model.safetensors"),
        ("export exported out", "exported/config.json"),
        ("report pointwise/one -o out", "logs/pointwise/one/results.json"),
        ("report pointwise/one -o out", "logs/pointwise/one/cases.json"),
        ("report pointwise/one -o out", "logs/pointwise/one/metrics.jsonl"),
        ("report pointwise/one -o out", "logs/pointwise/one/config.yaml"),
        ("report pointwise/one -o out", "logs/pointwise/one/best"),
        ("export pointwise/one out", "logs/pointwise/one/features.json"),
        ("export bare/pointwise/x out", "bare/pointwise/x/best"),
        ("export bare/pointwise/x out", "bare/pointwise/x/best/config.json"),
    ],
)
def test_what_a_link_in_a_folder_leads_to_is_not_handed_on(
    world: Path, line: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The folder may come from someone else, who may not choose which of the user's files a command reads."""
    if "report" in line:
        main(EVALUATE.split())
    if "exported" in line:
        main(["export", "ppo/one", "exported"])
    shutil.copytree(world / "logs" / "pointwise" / "one" / "best", world / "bare" / "pointwise" / "x" / "best")
    path, private = world / name, world.parent / "private"
    path.rename(private)
    path.symlink_to(private)
    assert_not_handed_on(world, line, "is a link to", capfd)
    if path.name == "model.safetensors":
        path.unlink()
        path.hardlink_to(private)
        assert_not_handed_on(world, line, "is a hard link, one of 2 names of a file", capfd)


def assert_not_handed_on(world: Path, line: str, fault: str, capfd: pytest.CaptureFixture[str]) -> None:
    capfd.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(line.split())
    message = capfd.readouterr().err
    assert ended.value.code == 2, message
    assert message.count("error: ") == 1, message
    assert fault in message or "has links to other folders" in message
    assert not (world / "out").exists()
    assert not (world / "logs" / "finetune" / "new").exists()


def test_links_in_a_folder_that_cannot_be_listed_are_refused_too() -> None:
    """Such a folder can be written to by name. It is not below `tmp_path`, which is closed to other users."""
    with TemporaryDirectory() as name:
        shutil.chown(name, ORDINARY)
        with as_ordinary_user():
            checkpoints = Path(name, "checkpoints")
            checkpoints.mkdir()
            (checkpoints / "last").symlink_to(name)
            checkpoints.chmod(0o300)
            with pytest.raises(PermissionError):
                check_no_links(checkpoints.parent)
            checkpoints.chmod(0o700)


@contextmanager
def as_ordinary_user() -> Iterator[None]:
    """Within the context, be no superuser, who lists any folder."""
    user = os.geteuid()
    os.seteuid(ORDINARY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_file_that_is_replaced_may_have_other_names(world: Path) -> None:
    outside, path = world.parent / "outside" / "file", world / "logs" / "pointwise" / "one" / "report.html"
    path.hardlink_to(outside)
    main(EVALUATE.split())
    assert outside.read_bytes() == b"precious"
    assert path.read_bytes().startswith(b"<!doctype html>")


def test_check_writes_nothing_into_the_data(world: Path) -> None:
    link = world / "data" / ".clean_feat.h5.checked.json"
    link.symlink_to("../../outside/file")
    before = list(content(world.parent))
    main(["check", "data"])
    assert list(content(world.parent)) == before


@pytest.mark.parametrize("name", ["logs", "logs/pointwise", "logs/pointwise/one", "data", "data/clean_feat.h5"])
def test_logs_a_run_and_data_on_another_disk_are_used_by_links(world: Path, name: str) -> None:
    moved = world / name
    moved.rename(world.parent / "disk")
    moved.symlink_to(world.parent / "disk")
    results = world / "logs" / "pointwise" / "one" / "results.json"
    before = results.read_bytes()
    main(EVALUATE.split())
    assert results.read_bytes() != before
    assert not results.is_symlink()
    assert moved.is_symlink()


def test_a_new_run_is_written_into_an_empty_folder_by_a_link(world: Path) -> None:
    (world / "logs" / "pointwise" / "new").symlink_to(world.parent / "disk")
    (world.parent / "disk").mkdir()
    main([*TRAIN.split(), "name=new", "train.evaluate_every=100"])
    assert (world.parent / "disk" / "finished.json").is_file()


def test_a_run_that_a_link_leads_to_is_not_removed(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (world / "logs" / "pointwise" / "new").symlink_to(world.parent / "outside")
    before = list(content(world.parent / "outside"))
    with pytest.raises(SystemExit) as ended:
        main([*TRAIN.split(), "name=new", "--fresh"])
    assert ended.value.code == 2
    assert "outside, which has files, and nothing is removed through a link" in capfd.readouterr().err
    assert list(content(world.parent / "outside")) == before


def test_a_page_is_written_to_where_a_typed_link_leads(world: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (world / "mine.html").symlink_to("../outside/file")
    main(["report", "ppo/one", "-o", "mine.html"])
    assert b"<html" in (world.parent / "outside" / "file").read_bytes()
    assert (world / "mine.html").is_symlink()
    assert "written: mine.html" in capfd.readouterr().out
