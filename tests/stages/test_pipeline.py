"""The pipeline trains and evaluates what is not finished, over seeds."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from lr2ppo.errors import UserError
from lr2ppo.stages.pipeline import run_pipeline
from tests.conftest import REPOSITORY

Overrides = Callable[..., list[str]]
PRESET = REPOSITORY / "configs" / "mini"
SHORT = ("data.frames=3", "train.epochs=1", "train.clips_per_batch=16", "device=cpu")


@pytest.mark.slow
def test_stages_not_yet_done_are_trained_and_evaluated_over_seeds(
    tiny_overrides: Overrides, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = tiny_overrides(*SHORT, "train.max_labels=6", "ppo:loss.margin=0.5")
    runs = run_pipeline("study", PRESET, settings, seeds=(1, 2))
    assert runs == [f"{stage}/study-{seed}" for seed in (1, 2) for stage in ("pointwise", "reward", "ppo")]
    logs = tmp_path / "logs"
    for run in runs:
        config = yaml.safe_load((logs / run / "config.yaml").read_text(encoding="utf-8"))
        assert config["seed"] == int(run[-1])
        for key in ("ranker", "reward"):
            assert config.get(key, "").endswith(("", run.partition("/")[2])[key in config])
        assert "test" in json.loads((logs / run / "results.json").read_text(encoding="utf-8"))
    assert config["loss"]["margin"] == 0.5
    kept = (logs / "ppo" / "study-2" / "finished.json").read_bytes()
    (logs / "reward" / "study-1" / "results.json").unlink()
    capfd.readouterr()
    run_pipeline("study", PRESET, settings, seeds=(1, 2))
    printed = capfd.readouterr().out
    assert printed.count(": finished already") == 6
    assert printed.count(": evaluated already") == 5
    assert (logs / "ppo" / "study-2" / "finished.json").read_bytes() == kept


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("train.epocs=3", "did you mean train.epochs"),
        ("ppo:train.max_labels=3", "unknown key|not a setting of any stage"),
        ("loss.margin=x", "loss.margin: found 'x'"),
        ("data.root", "wanted an override key=value"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_before_any_run_starts(
    setting: str, expected: str, tiny_overrides: Overrides, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=expected):
        run_pipeline("study", PRESET, tiny_overrides(*SHORT, setting))
    assert not (tmp_path / "logs").exists()
