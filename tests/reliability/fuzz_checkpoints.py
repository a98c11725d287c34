"""Resume runs whose checkpoints are broken: each run continues to its end, or is refused with one message.

One that someone else made, with the right checksums, may make a run that means nothing, but no traceback.
"""

import shutil
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import torch
from hypothesis import strategies as st

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import PointwiseConfig
from lr2ppo.distributed.processes import Processes
from lr2ppo.files import file_fingerprint, write_json
from lr2ppo.runs.lookup import read_finished
from lr2ppo.stages import pointwise
from lr2ppo.training.run import TrainingRun
from tests.conftest import REPOSITORY, write_tiny_world
from tests.helpers.fuzz import Case, may_refuse
from tests.runs.test_fuzz_runs import damage_file

STEPS = 4
SETTINGS = (
    *(
        "name=one",
        "device=cpu",
        "train.epochs=1",
        "train.clips_per_batch=8",
        "train.evaluate_every=2",
        "model.width=16",
    ),
    *("safety.checkpoint_steps=1", "safety.keep=3"),
)


class _StoppedError(Exception):
    """Ends a run where it would finish, so that it keeps its checkpoints."""


def config_of(root: Path, logs: Path) -> PointwiseConfig:
    path = REPOSITORY / "configs" / "mini" / "pointwise.yaml"
    return load_config(path, "pointwise", [f"data.root={root / 'data'}", f"logs={logs}", *SETTINGS])


def write_valid(root: Path) -> None:
    """Write a run that was stopped after half of its steps."""
    write_tiny_world(root / "data")
    config = config_of(root, root / "logs")
    torch.manual_seed(config.seed)
    with patch.object(TrainingRun, "_finish", side_effect=_StoppedError), suppress(_StoppedError):
        pointwise.train(config, _alone(), fresh=False)
    shutil.rmtree(max((root / "logs" / "pointwise" / "one" / "checkpoints").glob("step-*")))


def any_checkpoint(folder: Path, valid: Path, data: st.DataObject) -> None:
    # A lock belongs to its path for as long as this process lives.
    shutil.rmtree(folder / "logs", ignore_errors=True)
    shutil.copytree(valid / "logs", folder / "logs")
    run = folder / "logs" / "pointwise" / "one"
    newest = max((run / "checkpoints").glob("step-*"))
    kept = ("config.yaml", "metrics.jsonl", "inputs.json", "trained_on.json")
    files = [*newest.iterdir(), *(run / name for name in kept)]
    for path in data.draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=2, unique=True)):
        damage_file(path, data)
    is_hostile = data.draw(st.booleans())
    if is_hostile:
        # With checksums of what it holds, it may also say that there is less left to do.
        names = [path for path in sorted(newest.iterdir()) if path.name != "checksums.json"]
        write_json(newest / "checksums.json", {path.name: file_fingerprint(path) for path in names})
    config = config_of(valid, folder / "logs")
    with may_refuse(run):
        pointwise.train(config, _alone(), fresh=False)
        assert is_hostile or (read_finished(run) or {})["steps"] == STEPS


def _alone() -> Processes:
    return Processes(0, 1, torch.device("cpu"))


CASES: dict[str, Case] = {"checkpoints": any_checkpoint}
