"""A run starts from the weights that its `inputs.json` names, whatever happens to them while it reads them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lr2ppo.config.load import load_config
from lr2ppo.data.validate import CheckedClips
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.files import file_fingerprint
from lr2ppo.models.weights import KINDS, save_model
from lr2ppo.runs.stages import STAGES
from lr2ppo.training.run import TrainingRun
from tests.conftest import REPOSITORY
from tests.helpers.parallel_training import TRAIN
from tests.helpers.untrained_world import SHAPE, make_untrained_world

pytestmark = pytest.mark.slow

Train = Callable[[str], None]


@pytest.fixture
def train(tiny_world: Path, tmp_path: Path, alone: Processes) -> Train:
    """Trains a run `new` of a stage for an epoch, from the untrained runs."""
    data = shutil.copytree(tiny_world, tmp_path / "data")
    make_untrained_world(tmp_path, data)

    def run(stage: str) -> None:
        settings = [f"logs={tmp_path / 'logs'}", f"data.root={data}", "name=new", "device=cpu", "train.epochs=1"]
        settings += [f"data.frames={SHAPE.frames}", *(f"{key}=one" for key in STAGES[stage].sources)]
        settings += [] if stage == "ppo" else [f"model.width={SHAPE.width}", f"model.heads={SHAPE.heads}"]
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
    inputs = json.loads((tmp_path / "logs" / "pointwise" / "new" / "inputs.json").read_text(encoding="utf-8"))
    assert inputs["train"] == read
