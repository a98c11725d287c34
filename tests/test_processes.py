"""Several processes, started by the stage scripts through torchrun."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.workspace import Workspace


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.make(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def trained(workspace: Workspace, tiny_world: Path) -> Workspace:
    """Stage 1 by one process with batches of 8 clips, and by two with batches of 4 each."""
    data, settings = f"data.root={tiny_world}", ("model.dropout=0", "train.epochs=3", "train.max_labels=6")
    workspace.ok("sh", "pointwise.sh", "one", data, *settings, "train.clips_per_batch=8")
    workspace.ok("sh", "pointwise.sh", "two", data, *settings, "train.clips_per_batch=4", processes=2)
    return workspace


def test_two_processes_train_the_model_that_one_trains_on_batches_of_twice_the_size(trained: Workspace) -> None:
    one, two = (
        load_file(trained.root / "logs" / "pointwise" / name / "checkpoints" / "last" / "model.safetensors")
        for name in ("one", "two")
    )
    for key in one:
        # A bias that shifts all logits of a softmax has no gradient but rounding, which Adam blows up.
        if not key.endswith(("keys.bias", "_pool.bias")):
            torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5)


def test_evaluation_by_two_processes_scores_every_clip_once_and_gives_the_same_figures(trained: Workspace) -> None:
    folder = trained.root / "logs" / "pointwise" / "one"
    found = []
    for processes in (1, 2):
        trained.ok("sh", "ppo_eval.sh", "pointwise/one", processes=processes)
        cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))["test"]
        assert [case["id"] for case in cases] == [f"test-{i}" for i in range(17)]
        found.append(json.loads((folder / "results.json").read_text(encoding="utf-8"))["test"])
    assert found[0] == found[1]


def test_the_later_stages_run_on_two_processes(trained: Workspace, tiny_world: Path) -> None:
    data = f"data.root={tiny_world}"
    trained.ok(
        "sh", "reward_pair_dataloader.sh", "two", data, "ranker=one", "train.epochs=2", "train.clips_per_batch=4",
        processes=2,
    )  # fmt: skip
    printed = trained.ok("sh", "ppo.sh", "two", data, "train.epochs=2", "train.clips_per_batch=4", processes=2)
    assert "step 0/8" in printed
    assert "step 8/8" in printed
    assert printed.count("finished in") == 1


def test_a_mistake_is_told_once_by_two_processes(workspace: Workspace) -> None:
    message = workspace.refused("sh", "pointwise.sh", "x", "train.epoch=3", processes=2)
    assert "unknown key 'train.epoch'; did you mean train.epochs?" in message


def test_the_number_of_processes_must_be_one(workspace: Workspace) -> None:
    environment_error = workspace.run("env", "NPROC=two", "sh", "pointwise.sh", "x")
    assert environment_error.returncode == 2
    assert "NPROC: found 'two', wanted a whole number" in environment_error.stderr
