"""From a table of one's own to an evaluated ranker, as docs/own_data.md says, on a few clips."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lr2ppo.data import mini
from lr2ppo.data import validate as check_folder
from lr2ppo.data.convert import convert
from lr2ppo.encoders import extract, pretrain
from lr2ppo.inference import command as rank_command
from lr2ppo.stages import evaluate, pointwise, ppo, reward
from lr2ppo.training.command import run_stage
from tests.conftest import REPOSITORY

SMALL = ("--steps=8", "--batch=8", "--width=16", "--layers=1", "--heads=2", "--image-size=32", "--device=cpu")
SETTINGS = ("device=cpu", "train.epochs=2", "model.width=16", "model.heads=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of the page was run, with as little training as there can be."""
    place = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:

        def run(command: Callable[[], None], *arguments: str) -> None:
            patch.setattr(sys, "argv", ["command", *arguments])
            command()

        patch.chdir(place)
        # So few steps learn nothing.
        patch.setattr(pretrain, "MATCHED_LOSS_LIMIT", math.inf)
        run(mini.main, "example", "--table=12")
        run(convert.main, "example/table.csv", "--out=data/example")
        run(pretrain.main, "--data=data/example", "--out=pretrained_models/example", *SMALL)
        shutil.rmtree(place / "example")
        encoders = ("--text=pretrained_models/example/roberta", "--image=pretrained_models/example/vit")
        run(extract.main, "--data=data/example", *encoders, "--frame-tokens=patches", "--device=cpu")
        run(check_folder.main, "data/example")
        for stage, train in (("pointwise", pointwise.train), ("reward", reward.train), ("ppo", ppo.train)):
            settings = [setting for setting in SETTINGS if stage != "ppo" or not setting.startswith("model.")]
            config = f"--config={REPOSITORY / 'configs' / 'mini' / stage}.yaml"
            run(partial(run_stage, stage, train), config, "name=example", "data.root=data/example", *settings)
        config = f"--config={REPOSITORY / 'configs' / 'mini' / 'evaluate'}.yaml"
        for stage in ("pointwise", "reward", "ppo"):
            run(evaluate.main, config, f"name={stage}/example", "device=cpu")
    return place


def test_every_stage_is_evaluated_on_the_clips_held_out_for_the_test(place: Path) -> None:
    held_out = [clip["id"] for clip in json.loads((place / "data/example/test_data.json").read_text(encoding="utf-8"))]
    assert len(held_out) == 2
    for stage in ("pointwise", "reward", "ppo"):
        cases = json.loads((place / "logs" / stage / "example" / "cases.json").read_text(encoding="utf-8"))["test"]
        assert [case["id"] for case in cases] == held_out


def test_the_run_ranks_labels_of_a_clip_that_is_in_no_table(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    frames = next((place / "data" / "example" / "frames").iterdir())
    arguments = ["ppo/example", "--frames", str(frames), "--labels", "boat,car,star", "--json", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    rank_command.main()
    ranked = json.loads(capsys.readouterr().out)["ranked"]
    assert sorted(row["label"] for row in ranked) == ["boat", "car", "star"]
    scores = [row["score"] for row in ranked]
    assert scores == sorted(scores, reverse=True)


def test_the_evaluation_of_the_last_stage_leaves_a_report_of_all(place: Path) -> None:
    page = (place / "logs" / "ppo" / "example" / "report.html").read_text(encoding="utf-8")
    assert all(f"{stage}/example" in page for stage in ("pointwise", "reward", "ppo"))
    assert "data:image/jpeg" in page
