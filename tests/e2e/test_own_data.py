"""From a user's table to an evaluated ranker, as in docs/own_data.md, on a few clips."""

import json
import math
import shutil
from pathlib import Path

import pytest

from lr2ppo.cli import main
from lr2ppo.encoders import pretrain
from tests.conftest import REPOSITORY

SMALL = ("--steps=8", "--batch=8", "--width=16", "--layers=1", "--heads=2", "--image-size=32", "--device=cpu")
STAGES = ("pointwise", "finetune", "reward", "ppo")
SETTINGS = ("device=cpu", "train.epochs=2", "model.width=16", "model.heads=2")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every command of the page was run, with minimal training."""
    place = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        # So few steps learn nothing.
        patch.setattr(pretrain, "MATCHED_LOSS_LIMIT", math.inf)
        main(["mini", "example", "--table=12"])
        main(["convert", "example/table.csv", "--out=data/example"])
        main(["pretrain", "--data=data/example", "--out=pretrained_models/example", *SMALL])
        shutil.rmtree(place / "example")
        encoders = ("--text=pretrained_models/example/roberta", "--image=pretrained_models/example/vit")
        main(["extract", "--data=data/example", *encoders, "--frame-tokens=patches", "--device=cpu"])
        main(["check", "data/example"])
        for stage in STAGES:
            settings = [each for each in SETTINGS if stage in ("pointwise", "reward") or not each.startswith("model.")]
            config = f"--config={REPOSITORY / 'configs' / 'mini' / stage}.yaml"
            main(["train", stage, config, "name=example", "data.root=data/example", *settings])
        config = f"--config={REPOSITORY / 'configs' / 'mini' / 'evaluate'}.yaml"
        for stage in STAGES:
            main(["evaluate", config, f"name={stage}/example", "device=cpu"])
    return place


def test_every_stage_is_evaluated_on_the_clips_held_out_for_the_test(place: Path) -> None:
    held_out = [clip["id"] for clip in json.loads((place / "data/example/test_data.json").read_text(encoding="utf-8"))]
    assert len(held_out) == 2
    for stage in STAGES:
        cases = json.loads((place / "logs" / stage / "example" / "cases.json").read_text(encoding="utf-8"))["test"]
        assert [case["id"] for case in cases] == held_out


def test_the_run_ranks_labels_of_a_clip_that_is_in_no_table(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    frames = next((place / "data" / "example" / "frames").iterdir())
    main(["rank", "ppo/example", "--frames", str(frames), "--labels", "boat,car,star", "--json", "--device", "cpu"])
    ranked = json.loads(capsys.readouterr().out)["ranked"]
    assert sorted(row["label"] for row in ranked) == ["boat", "car", "star"]
    scores = [row["score"] for row in ranked]
    assert scores == sorted(scores, reverse=True)


def test_the_evaluation_of_the_last_stage_leaves_a_report_of_all(place: Path) -> None:
    page = (place / "logs" / "ppo" / "example" / "report.html").read_text(encoding="utf-8")
    assert all(f"{stage}/example" in page for stage in STAGES)
    assert "data:image/jpeg" in page
