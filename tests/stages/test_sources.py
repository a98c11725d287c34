"""A run starts from the weights that its `inputs.json` names, whatever happens to them while it reads them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lr2ppo.config.load import load_config
from lr2ppo.data import FeatureStore, dataset
from lr2ppo.data.annotations import read_clips
from lr2ppo.data.validate import CheckedClips
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.files import file_fingerprint, read_json, write_json
from lr2ppo.models.weights import KINDS, save_model
from lr2ppo.runs.stages import STAGES
from lr2ppo.training import inputs
from lr2ppo.training.run import TrainingRun
from lr2ppo.training.run_folder import resolve_sources
from tests.conftest import REPOSITORY
from tests.helpers.parallel_training import TRAIN
from tests.helpers.untrained_world import SHAPE, make_untrained_world

pytestmark = pytest.mark.slow

Train = Callable[..., None]


@pytest.fixture
def train(tiny_world: Path, tmp_path: Path, alone: Processes) -> Train:
    """Trains a run `new` of a stage for an epoch, from the untrained runs."""
    data = shutil.copytree(tiny_world, tmp_path / "data")
    make_untrained_world(tmp_path, data)

    def run(stage: str, *more: str) -> None:
        settings = [f"logs={tmp_path / 'logs'}", f"data.root={data}", "name=new", "device=cpu", "train.epochs=1"]
        settings += [
            f"data.frames={SHAPE.frames}",
            *(f"{key}={usual}/one" for key, (usual, *_) in STAGES[stage].sources.items()),
        ]
        # The published policy reads the reward model twice.
        settings += ["policy.name=partial_order"] * (stage == "ppo")
        settings += (
            more
            if "model" not in STAGES[stage].config.model_fields
            else [f"model.width={SHAPE.width}", f"model.heads={SHAPE.heads}"]
        )
        TRAIN[stage](load_config(REPOSITORY / "configs" / "mini" / f"{stage}.yaml", stage, settings), alone, False)

    return run


@pytest.mark.parametrize("moment", ["open", "read"])
@pytest.mark.parametrize(("stage", "key"), [("reward", "ranker"), ("ppo", "ranker"), ("ppo", "reward")])
def test_a_run_that_is_trained_again_while_another_reads_it_ends_that_before_its_first_step(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, key: str, moment: str
) -> None:
    """Stage 3 reads the reward model twice: `read` is between them."""
    source, real = tmp_path / "logs" / STAGES[stage].sources[key][0] / "one", getattr(TrainingRun, moment)

    def train_again(*arguments: Any) -> Any:
        result = real(*arguments)
        torch.manual_seed(99)
        save_model(source / "best", KINDS[STAGES[source.parent.name].model](SHAPE))
        return result

    monkeypatch.setattr(TrainingRun, moment, train_again)
    with pytest.raises(UserError, match=f"{source}: its weights changed while this run read them"):
        train(stage)
    assert not (tmp_path / "logs" / stage / "new").exists()


@pytest.mark.parametrize("stage", list(STAGES))
def test_features_that_change_during_a_run_end_it_before_it_saves_anything_more(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    path, real = tmp_path / "data" / "clean_feat.h5", TrainingRun.advance

    def advance(run: TrainingRun[Any], shown: Any) -> None:
        real(run, shown)
        if run.step == 1:
            path.write_bytes(path.read_bytes())

    monkeypatch.setattr(TrainingRun, "advance", advance)
    with pytest.raises(UserError, match=r"clean_feat\.h5: changed while it was in use"):
        train(stage)
    folder = tmp_path / "logs" / stage / "new"
    assert not (folder / "finished.json").exists()
    assert not list(folder.glob("checkpoints/step-*"))


REPLACES_FEATURES = """
import os, shutil, sys
from lr2ppo.cli import main
from lr2ppo.training.run import TrainingRun

path, real = sys.argv.pop(), TrainingRun.batches

def batches(run):
    shutil.copy(path, f"{path}.new")
    os.replace(f"{path}.new", path)
    return real(run)

TrainingRun.batches = batches
main(sys.argv[1:])
"""


def test_a_run_ends_whose_workers_find_a_fault(train: Train, tmp_path: Path) -> None:
    settings = [
        "name=new",
        f"data.root={tmp_path / 'data'}",
        f"logs={tmp_path / 'logs'}",
        "data.workers=1",
        "data.keep=disk",
    ]
    settings += ["device=cpu", f"data.frames={SHAPE.frames}"]
    config = REPOSITORY / "configs" / "mini" / "pointwise.yaml"
    path = str(tmp_path / "data" / "clean_feat.h5")
    command = [sys.executable, "-c", REPLACES_FEATURES, "train", "pointwise", "--config", str(config), *settings, path]
    # Under 200 seconds even on a busy machine; workers that are waited for would never end.
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1), done.stderr
    assert f"error: {path}: changed while it was in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_check_of_features_is_remembered_for_the_files_that_were_opened(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "data" / "clean_feat.h5", dataset.open_dataset

    def open_dataset(*arguments: Any) -> Any:
        shutil.copy(path, tmp_path / "other.h5")
        (tmp_path / "other.h5").replace(path)
        return real(*arguments)

    with monkeypatch.context() as replaced:
        replaced.setattr(inputs, "open_dataset", open_dataset)
        train("pointwise")
    store = FeatureStore([path])
    clips = read_clips(tmp_path / "data" / "first_stage_data.json")
    assert CheckedClips(store).missing(clips) == clips


def test_annotations_that_change_while_they_are_read_are_refused(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "data" / "first_stage_data.json", dataset.open_dataset

    def open_dataset(*arguments: Any) -> Any:
        opened = real(*arguments)
        path.write_bytes(path.read_bytes() + b" ")
        return opened

    monkeypatch.setattr(inputs, "open_dataset", open_dataset)
    with pytest.raises(UserError, match=r"first_stage_data\.json: changed while it was read; run the same command"):
        train("pointwise")
    assert not (tmp_path / "logs" / "pointwise" / "new").exists()


@pytest.mark.parametrize("place", ["beside", "elsewhere"])
def test_a_run_that_resumes_reads_no_run_of_another_folder_that_it_does_not_know(
    train: Train, tmp_path: Path, place: str
) -> None:
    """A folder of someone else may hold a stopped run that names any run."""
    train("finetune")
    run = tmp_path / "logs" / "finetune" / "new"
    source = tmp_path / "logs" / "pointwise" / "one"
    if place == "elsewhere":
        source = Path(shutil.copytree(source, tmp_path / "private" / "pointwise" / "secret"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    (run / "config.yaml").write_text(yaml.safe_dump(config | {"ranker": str(source)}), encoding="utf-8")
    known = read_json(run / "inputs.json")
    write_json(run / "inputs.json", {key: value for key, value in known.items() if key != "ranker"})
    kept = load_config(run / "config.yaml", "finetune").model_copy(update={"ranker": "newest"})
    if place == "beside":
        assert resolve_sources(kept, run)[1] == {"ranker": source}
        return
    with pytest.raises(UserError, match=f"ranker: found {source}, .*not known which weights it had; .*ranker={source}"):
        resolve_sources(kept, run)
    # Who names it, wants it; and a run that knows the weights may start from anywhere.
    assert resolve_sources(kept.model_copy(update={"ranker": str(source)}), run)[1] == {"ranker": source}
    write_json(run / "inputs.json", known)
    assert resolve_sources(kept, run)[1] == {"ranker": source}


def test_inputs_name_the_annotations_that_were_read_and_not_those_that_replace_them(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "data" / "first_stage_data.json", CheckedClips.missing
    read = file_fingerprint(path)

    def missing(*arguments: Any) -> Any:
        path.write_bytes(path.read_bytes() + b" ")
        return real(*arguments)

    monkeypatch.setattr(CheckedClips, "missing", missing)
    train("pointwise")
    assert read_json(tmp_path / "logs" / "pointwise" / "new" / "inputs.json")["train"] == read
