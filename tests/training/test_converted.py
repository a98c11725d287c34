"""A converted checkpoint is a run like any other."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.evaluation.published import compare_stage
from lr2ppo.inference.model_card import write_card
from lr2ppo.inference.trained import open_trained
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import Model, load_model
from lr2ppo.report import write_report
from lr2ppo.report.load import find_rows
from lr2ppo.runs.listing import list_runs
from lr2ppo.runs.lookup import find_source_run, read_finished, source_runs
from lr2ppo.runs.stages import LR2PPO, STAGES
from lr2ppo.training.converted import write_converted_run
from tests.conftest import REPOSITORY

SHAPE = ModelConfig(
    head="flatten", attention="published", width=8, heads=8, dropout=0.1, text_tokens=3, frames=5, text_width=8,
    image_width=8,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _at_the_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    monkeypatch.chdir(tmp_path)


def convert(out: str, kind: type[Model] = RelevanceRanker, preset: str = "mini") -> Path:
    torch.manual_seed(0)
    return write_converted_run(kind(SHAPE), Path("theirs.bin"), Path(out), preset)


@pytest.mark.parametrize("stage", list(STAGES))
def test_its_folder_is_complete_with_the_data_of_a_preset(stage: str) -> None:
    kind = PartialOrderModel if stage == "reward" else RelevanceRanker
    folder = convert(f"logs/{stage}/theirs/best", kind)
    assert folder == Path("logs", stage, "theirs")
    config, preset = load_config(folder / "config.yaml", stage), load_config(Path(f"configs/mini/{stage}.yaml"), stage)
    assert (config.name, config.logs, config.preset) == ("theirs", Path("logs"), "mini")
    assert config.data == preset.data.model_copy(update={"frames": 5})
    assert "model" not in STAGES[stage].config.model_fields or config.model == SHAPE
    found, wanted = load_model(folder / "best").state_dict(), kind(SHAPE).state_dict()
    assert {name: tensor.shape for name, tensor in found.items()} == {n: t.shape for n, t in wanted.items()}
    finished = read_finished(folder)
    assert finished is not None
    assert (finished["converted_from"], finished["best_step"]) == ("theirs.bin", 0)
    assert source_runs(folder) == {}
    assert find_source_run("theirs", (stage,), "another", Path("logs")) == folder
    with pytest.raises(UserError, match=f"found no finished {stage} run of preset mini"):
        find_source_run("newest", (stage,), "mini", Path("logs"))


def test_all_that_reads_runs_takes_it(tmp_path: Path) -> None:
    for stage in STAGES:
        convert(f"logs/{stage}/theirs", PartialOrderModel if stage == "reward" else RelevanceRanker, "lrmovienet")
    assert [(run.stage, run.name, run.state) for run in list_runs(Path("logs"))] == [
        (stage, "theirs", "converted") for stage in STAGES
    ]
    rows = find_rows([f"{stage}/theirs" for stage in STAGES], Path("logs"))
    page = write_report(rows, "test", tmp_path / "page.html")
    assert page.read_text(encoding="utf-8").count("<dt>Converted from</dt><dd>theirs.bin</dd>") == len(STAGES)
    for stage, record in LR2PPO.items():
        with pytest.raises(UserError, match="found converted weights"):
            compare_stage(record, Path("logs", stage, "theirs"))
    trained = open_trained("ppo/theirs", Path("logs"))
    assert (trained.use.frames, trained.reward, trained.before) == (5, None, None)
    assert "is a ppo run without a reward model" in trained.no_reward
    assert open_trained("reward/theirs", Path("logs")).use.temperature == 1.0
    write_card(trained, tmp_path / "README.md", Path("out"), None)
    assert "The weights were converted from `theirs.bin`" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_what_cannot_become_a_run_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"found a RelevanceRanker in theirs\.bin, wanted a PartialOrderModel, .* such "
    ):
        convert("logs/reward/theirs")
    with pytest.raises(UserError, match=r"configs/nowhere/pointwise\.yaml: no such config file; there are: "):
        convert("logs/pointwise/theirs", preset="nowhere")
    assert not (tmp_path / "logs").exists()
    convert("logs/pointwise/theirs")
    with pytest.raises(UserError, match="logs/pointwise/theirs: found a run of this name already"):
        convert("logs/pointwise/theirs/best")


def test_a_name_that_a_training_owns_is_not_written_into() -> None:
    folder = Path("logs/pointwise/owned")
    program = f"from pathlib import Path; from lr2ppo.runs.lock import lock_run; lock_run(Path({str(folder)!r}))"
    command = [sys.executable, "-c", f"{program}; print('locked', flush=True); input()"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"locked\n"
        with pytest.raises(UserError, match="another run of this name is running"):
            convert(str(folder))
        owner.communicate(b"\n")
    assert not folder.exists()
    assert convert(str(folder)) == folder


def test_the_yaml_file_may_be_given() -> None:
    given = Path("own.yaml")
    text = Path("configs/mini/pointwise.yaml").read_text(encoding="utf-8")
    given.write_text(text.replace("root: data/mini", "root: data/own"), encoding="utf-8")
    folder = write_converted_run(RelevanceRanker(SHAPE), Path("theirs.bin"), Path("logs/pointwise/a"), "mini", given)
    assert load_config(folder / "config.yaml", "pointwise").data.root == Path("data/own")
