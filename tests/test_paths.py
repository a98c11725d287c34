"""Every path that a command takes may name the wrong thing: one message names it at once, with exit code 2."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lr2ppo.cli import main
from lr2ppo.data import Clip, FeatureWriter, annotations, write_clips
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.published import write_published
from lr2ppo.models.weights import save_model
from tests.conftest import REPOSITORY
from tests.helpers.untrained_world import SHAPE, make_untrained_world

MINI = REPOSITORY / "configs" / "mini"
SECONDS = 10
# What is wrong with a path, by what the command wants there.
WRONG = {
    "file": ("long", "missing", "folder", "loop", "pipe", "below a file", "unreadable"),
    "folder": ("long", "missing", "file", "loop", "pipe", "below a file"),
    "new file": ("long", "folder", "loop", "pipe", "below a file"),
    "new file or folder": ("long", "loop", "pipe", "below a file"),
    "new folder": ("long", "file", "loop", "pipe", "below a file"),
    "run": ("long", "missing", "file", "loop", "pipe", "below a file"),
}
# Command lines that are right but for one path, `{wrong}`, by what belongs there. They run in a folder with `data`,
# `encoders`, `logs` and a few files.
TRAIN = f"train pointwise --config {MINI}/pointwise.yaml name=new data.root=data device=cpu"
REWARD = f"train reward --config {MINI}/reward.yaml name=new data.root=data device=cpu"
EVALUATE = f"evaluate --config {MINI}/evaluate.yaml device=cpu"
RANK = "rank ppo/one --frames frame.png --labels car,sky"
RANK_FILE = "rank ppo/one --annotations clips/test_data.json --out ranked.jsonl"
ENCODERS = "--text encoders/roberta --image encoders/vit"
FLAT = {"head": "flatten", "attention": "published", "heads": 8, "text_tokens": 5}
PUBLISHED = f"published model.bin --text-tokens 5 --frames {SHAPE.frames}"
EXTRACT = f"extract --data clips {ENCODERS} --device cpu"
COMMAND_LINES = {
    "file": [
        "train pointwise --config {wrong} name=new",
        f"{TRAIN} data.features={{wrong}}",
        f"{TRAIN} data.train={{wrong}}",
        f"{TRAIN} data.validation={{wrong}}",
        "evaluate --config {wrong} name=ppo/one",
        "rank ppo/one --labels a,b --frames {wrong}",
        "rank ppo/one --labels a,b --frames frame.png {wrong}",
        "rank ppo/one --annotations {wrong} --out ranked.jsonl",
        "convert {wrong} --out new",
        "convert table.csv --out new --preferences {wrong}",
        "check data --features {wrong}",
        "published {wrong} new",
        f"{PUBLISHED} new --config {{wrong}}",
        "extract --data clips --text {wrong} --image encoders/vit",
        "extract --data clips --text encoders/roberta --image {wrong}",
    ],
    "folder": [
        f"{TRAIN} data.root={{wrong}}",
        f"{EVALUATE} name=ppo/one root={{wrong}}",
        "pipeline new --preset {wrong}",
        "check {wrong}",
        "check clips --features features.h5 --frames-root {wrong}",
        f"{RANK} --text {{wrong}}",
        f"{RANK} --tokenizer {{wrong}}",
        f"{RANK} --image {{wrong}}",
        f"{RANK_FILE} --frames-root {{wrong}}",
        "runs --logs {wrong}",
        "report ppo/one --frames-root {wrong}",
        "convert table.csv --out new --frames-root {wrong}",
        f"extract --data {{wrong}} {ENCODERS}",
        f"{EXTRACT} --tokenizer {{wrong}}",
        f"{EXTRACT} --frames-root {{wrong}}",
        "pretrain --data {wrong} --out new",
        "benchmark pointwise --preset {wrong}",
        f"{PUBLISHED} new --preset {{wrong}}",
    ],
    "run": [
        f"{EVALUATE} name={{wrong}}",
        f"{EVALUATE} --table {{wrong}}",
        f"{EVALUATE} --table ppo/one,{{wrong}}",
        f"{REWARD} ranker={{wrong}}",
        "rank {wrong} --frames frame.png --labels a,b",
        "report {wrong}",
        "export {wrong} new",
        "demo {wrong}",
        "compare-published {wrong}",
        "published --to-published {wrong} new.bin",
    ],
    "new file": [
        "rank ppo/one --annotations clips/test_data.json --out {wrong}",
        "report ppo/one -o {wrong}",
        f"{EXTRACT} --out {{wrong}}",
        "benchmark pointwise --preset mini --steps 1 --profile {wrong}",
    ],
    "new file or folder": ["published --to-published flat {wrong}"],
    "new folder": [
        f"{TRAIN} logs={{wrong}}",
        f"{EVALUATE} name=ppo/one logs={{wrong}}",
        "report ppo/one --logs {wrong}",
        f"{RANK} --logs {{wrong}}",
        "export ppo/one {wrong}",
        "export ppo/one new --logs {wrong}",
        "demo ppo/one --logs {wrong}",
        "compare-published one --logs {wrong}",
        "convert table.csv --out {wrong}",
        "mini {wrong}",
        f"{PUBLISHED} {{wrong}}",
        "pretrain --data clips --out {wrong}",
    ],
}
# These load encoders.
SLOW = ("rank", "extract")
CASES = [
    pytest.param(line, wrong, marks=[pytest.mark.slow] * line.startswith(SLOW))
    for wanted, lines in COMMAND_LINES.items()
    for line in lines
    for wrong in WRONG[wanted]
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_world: Path) -> Path:
    """A folder that every command line runs in."""
    root = tmp_path_factory.mktemp("world")
    (root / "data").symlink_to(tiny_world)
    (root / "configs").symlink_to(REPOSITORY / "configs")
    make_untrained_world(root, tiny_world)
    Image.new("RGB", (20, 16), "red").save(root / "frame.png")
    rows = [f"{clip},{label},{grade},frame.png\n" for clip in "abcd" for grade, label in enumerate(("car", "sky"))]
    (root / "table.csv").write_text("clip,label,grade,frames\n" + "".join(rows), encoding="utf-8")
    grades = np.array([1, 0])
    clips = [Clip(name, ("car", "sky"), grades, images=("frame.png",), description="a car") for name in "abcd"]
    for file in (annotations.SOURCE_TRAIN, annotations.TARGET_TRAIN, annotations.VALIDATION, annotations.TEST):
        write_clips(root / "clips" / file, clips)
    write_clips(root / "clips" / annotations.TARGET_PAIRS, [replace(clip, pairs=np.array([[0, 1]])) for clip in clips])
    with FeatureWriter(root / "clips" / "features.h5", {"tokens_per_frame": 1}) as store:
        for clip in clips:
            store.write(clip.id, [np.ones((2, 4), np.float32)] * 2, np.ones((1, 4), np.float32))
    shutil.copy(root / "frame.png", root / "clips")
    save_model(root / "flat", RelevanceRanker(SHAPE.model_copy(update=FLAT)))
    write_published(root / "flat", root / "model.bin")
    return root


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise within the context if it takes longer than so many seconds."""

    def expire(*_: Any) -> None:
        pytest.fail(f"took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def make_wrong(folder: Path, wrong: str) -> Path:
    path = folder / wrong.replace(" ", "-")
    if wrong == "long":
        return folder / ("x" * 300)
    if wrong == "folder":
        path.mkdir()
    elif wrong == "loop":
        path.symlink_to(path)
    elif wrong == "pipe":
        os.mkfifo(path)
    elif wrong == "below a file":
        path.write_bytes(b"x")
        return path / "inside"
    elif wrong == "unreadable":
        path.touch(mode=0)
    elif wrong == "file":
        path.write_bytes(b"x")
    return path


@pytest.mark.parametrize(("line", "wrong"), CASES)
def test_a_wrong_path_is_named_in_one_message(
    world: Path,
    tmp_path: Path,
    line: str,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = make_wrong(tmp_path, wrong)
    if wrong == "unreadable" and os.access(path, os.R_OK):
        pytest.skip("this user may read every file")
    monkeypatch.chdir(world)
    with within(SECONDS), pytest.raises(SystemExit) as ended:
        main(line.format(wrong=path).split())
    message = capfd.readouterr().err
    assert ended.value.code == 2, message
    assert message.count("error: ") == 1, message
    assert "Traceback" not in message
    assert str(path.parent if wrong == "below a file" else path) in message
