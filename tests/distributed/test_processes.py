"""Multiple processes, started by the stage scripts through torchrun."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lr2ppo.distributed.processes import Processes, join_processes
from lr2ppo.runs.lookup import METRICS, read_calibration
from tests.conftest import REPOSITORY
from tests.helpers.parallel_training import POLICIES, train_all
from tests.helpers.workspace import Workspace


@pytest.mark.parametrize("left", [{"RANK": "1"}, {"WORLD_SIZE": "2", "RANK": "0"}, {"RANK": "", "LOCAL_RANK": "x"}])
def test_variables_that_a_job_system_left_are_not_read(left: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with join_processes("cpu") as processes:
        assert (processes.rank, processes.world_size) == (0, 1)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return Workspace.make(tmp_path_factory.mktemp("processes"))


# Biases that shift all scores equally, in losses of differences, or all logits of a softmax: their gradient is only
# rounding.
SHIFTS = {
    "finetune": ("score.bias", "encoder.head.mlp.fc2.bias"),
    "distill": ("score.bias", "encoder.head.mlp.fc2.bias"),
    "reward": ("score.bias", "block.norm_out.bias"),
    "ppo": (
        *("score.bias", "encoder.head.mlp.fc2.bias", "encoder.head.text_pool.bias", "encoder.head.frame_pool.bias"),
        "encoder.fusion.attention.keys.bias",
    ),
}


@pytest.fixture(scope="module")
def parallel_logs(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train each stage: `one` with one process, `ddp` and `fsdp` with two and batches of half the size."""
    logs = tmp_path_factory.mktemp("parallel")
    train_all(Processes(0, 1, torch.device("cpu")), logs, tiny_world, "ddp")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*torchrun, "-m", "tests.helpers.parallel_training", str(logs), str(tiny_world), "ddp", "fsdp"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return logs


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "model", ["pointwise", "finetune", "reward", "distill", "ppo", "ppo/critic", "exact", "plackett_luce"]
)
def test_two_processes_train_the_model_that_one_trains_on_batches_of_twice_the_size(
    parallel_logs: Path, model: str, strategy: str
) -> None:
    stage, _, part = model.partition("/")
    prefix = ""
    if model in POLICIES:
        stage, prefix = "ppo", f"{model}-"
    one, two = (
        load_file(parallel_logs / stage / f"{prefix}{name}" / "checkpoints" / "last" / part / "model.safetensors")
        for name in ("one", strategy)
    )
    assert one.keys() == two.keys()
    one = {name: tensor for name, tensor in one.items() if name not in SHIFTS.get(stage if prefix else model, ())}
    difference = torch.stack([(two[name] - one[name]).double().norm() for name in one]).norm()
    size = torch.stack([tensor.double().norm() for tensor in one.values()]).norm()
    assert difference / size < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_nearly_the_same_in_bfloat16(parallel_logs: Path, strategy: str) -> None:
    one, two, single = (
        load_file(parallel_logs / "pointwise" / name / "checkpoints" / "last" / "model.safetensors")
        for name in ("bf16-one", f"bf16-{strategy}", "one")
    )
    size = torch.stack([tensor.norm() for tensor in one.values()]).norm()
    assert torch.stack([(two[name] - one[name]).norm() for name in one]).norm() < 0.01 * size
    assert torch.stack([(single[name] - one[name]).norm() for name in one]).norm() < 0.05 * size
    # The weights are kept in float32.
    assert {tensor.dtype for tensor in one.values()} == {torch.float32}
    assert any(not torch.equal(tensor, tensor.bfloat16().float()) for tensor in two.values())


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_fit_the_probabilities_that_one_fits(parallel_logs: Path, strategy: str) -> None:
    one, two = (read_calibration(parallel_logs / "finetune" / name) for name in ("one", strategy))
    assert one is not None
    assert two is not None
    # The biases of `SHIFTS` shift all scores, and with them their mean.
    assert two.model_dump(exclude={"mean"}) == pytest.approx(one.model_dump(exclude={"mean"}), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["finetune", "reward", "distill"])
def test_two_processes_log_what_one_logs(parallel_logs: Path, stage: str) -> None:
    """Means are over all pairs of a batch, of which processes have unequal numbers."""
    one, two = (
        [json.loads(line) for line in (parallel_logs / stage / name / METRICS).read_text(encoding="utf-8").splitlines()]
        for name in ("one", "ddp")
    )
    for row, other in zip(one, two, strict=True):
        shown = {key: value for key, value in row.items() if key in ("train/loss", "train/accuracy", "train/agreement")}
        assert {key: other[key] for key in shown} == pytest.approx(shown, rel=1e-4)
    assert len(shown) == 2


@pytest.fixture(scope="module")
def trained(workspace: Workspace, tiny_world: Path) -> Workspace:
    """Train stage 1 with one process."""
    workspace.ok("sh", "pointwise.sh", "one", f"data.root={tiny_world}", "train.epochs=3", "train.max_labels=6")
    return workspace


@pytest.mark.slow
def test_evaluation_by_any_number_of_processes_scores_every_clip_once_and_gives_the_same_figures(
    trained: Workspace,
) -> None:
    folder = trained.root / "logs" / "pointwise" / "one"
    found = []
    for processes in (1, 2, 3):
        trained.ok("sh", "ppo_eval.sh", "pointwise/one", processes=processes)
        cases = json.loads((folder / "cases.json").read_text(encoding="utf-8"))["test"]
        assert [case["id"] for case in cases] == [f"test-{i}" for i in range(17)]
        found.append(json.loads((folder / "results.json").read_text(encoding="utf-8"))["test"])
    assert found[0] == found[1] == found[2]


@pytest.mark.slow
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


def test_two_processes_report_a_mistake_once(workspace: Workspace) -> None:
    message = workspace.refused("sh", "pointwise.sh", "x", "train.epoch=3", processes=2)
    assert "unknown key 'train.epoch'; did you mean train.epochs?" in message


@pytest.mark.slow
def test_the_number_of_processes_must_be_one(workspace: Workspace) -> None:
    environment_error = workspace.run("env", "NPROC=two", "sh", "pointwise.sh", "x")
    assert environment_error.returncode == 2
    assert "NPROC: found 'two', wanted a whole number" in environment_error.stderr


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_large_tensors_reuse_the_memory_of_earlier_ones() -> None:
    """Counts the page faults of fresh memory."""
    code = """
import resource, sys, torch
from lr2ppo.ops.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory(torch.device("cpu"))
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
# Because of alignment, the heap grows a few times before a tensor fits into freed memory.
for _ in range(20):
    torch.ones(2**25)
before = pages()
for _ in range(5):
    torch.ones(2**25)
print(pages() - before)
"""
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", code, way], cwd=REPOSITORY, capture_output=True, check=True).stdout)
        for way in ("keep", "give back")
    )
    assert kept < 0.2 * given_back
