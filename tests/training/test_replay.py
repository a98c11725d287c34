"""Steps on a GPU: replayed ones are those of a plain run, and kept features those of the disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import ComputeConfig, ModelConfig, OptimizerConfig
from lr2ppo.data.features.kept import KeptFeatures
from lr2ppo.distributed.processes import Processes, choose_device
from lr2ppo.errors import UserError
from lr2ppo.models import RelevanceRanker
from lr2ppo.ops.adamw import MixedAdamW
from lr2ppo.tensors import read_tensors
from lr2ppo.training.checkpoint import write_checkpoint
from lr2ppo.training.learner import Learner
from lr2ppo.training.replay import Replayed
from lr2ppo.training.run_folder import LAST
from tests.conftest import REPOSITORY
from tests.distributed.test_processes import SHIFTS
from tests.helpers.parallel_training import TRAIN

COMMON = ("train.clips_per_batch=4", "train.evaluate_every=1000", "compute.precision=fp32", "data.frames=3")
SETTINGS = {
    "pointwise": ["train.epochs=3", "train.max_labels=6", "model.dropout=0.1"],
    "finetune": ["train.epochs=3", "train.pairs_per_clip=4", "ranker=start"],
    "reward": ["train.epochs=3", "train.pairs_per_clip=4", "model.dropout=0.1", "ranker=pointwise/start"],
    "distill": ["train.epochs=3", "train.pairs_per_clip=4", "ranker=pointwise/start", "reward=start"],
    "ppo": ["train.epochs=3", "train.pairs_per_clip=5", "train.dropout=0.1", "ranker=pointwise/start", "reward=start"],
}
PARTIAL_ORDER = ["policy.name=partial_order", "train.batches_per_rollout=3", "train.passes=2"]
CASES = [*SETTINGS, "ppo/partial_order"]


class World:
    """Runs of the tiny world's stages on one device."""

    def __init__(self, logs: Path, data: Path, processes: Processes) -> None:
        """Trains the runs that others start from, without dropout."""
        self.logs, self.data, self.processes = logs, data, processes
        for stage in ("pointwise", "reward"):
            self.train(stage, "start", "model.dropout=0")

    def train(self, case: str, name: str, *more: str) -> dict[str, Tensor]:
        """Train a stage; return its last weights."""
        stage, _, policy = case.partition("/")
        own = PARTIAL_ORDER if policy else []
        settings = [f"logs={self.logs}", f"data.root={self.data}", f"name={self.folder(case, name).name}"]
        overrides = [*settings, *COMMON, *SETTINGS[stage], *own, *more]
        config = load_config(REPOSITORY / "configs" / "mini" / f"{stage}.yaml", stage, overrides)
        torch.manual_seed(config.seed)
        TRAIN[stage](config, self.processes, False)
        return read_tensors(next((self.folder(case, name) / LAST).glob("*.safetensors")))

    def folder(self, case: str, name: str) -> Path:
        stage, _, policy = case.partition("/")
        return self.logs / stage / f"{name}{policy}"

    def rows(self, case: str, name: str) -> list[dict[str, Any]]:
        """The logged rows of a run, without their times."""
        lines = (self.folder(case, name) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def cpu_world(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("cpu"), tiny_world, Processes(0, 1, choose_device("cpu")))


@pytest.fixture(scope="module")
def gpu_world(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("gpu"), tiny_world, Processes(0, 1, choose_device("cuda")))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def distance(found: dict[str, Tensor], expected: dict[str, Tensor], case: str = "") -> float:
    """The distance of weights relative to their size, without those that a case's losses leave to rounding."""
    assert found.keys() == expected.keys()
    names = [name for name in expected if name not in SHIFTS.get(case.partition("/")[0], ())]
    difference = torch.cat([(found[name] - expected[name]).flatten() for name in names]).norm()
    return float(difference / torch.cat([expected[name].flatten() for name in names]).norm())


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_batches_of_steady_shapes_teach_the_same(case: str, cpu_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its random numbers are drawn for padding too.
    stage = case.partition("/")[0]
    more = [f"{'train' if stage == 'ppo' else 'model'}.dropout=0"] * (stage not in ("finetune", "distill"))
    expected = cpu_world.train(case, "exact", "data.keep=memory", *more)
    # As on a GPU.
    monkeypatch.setattr(KeptFeatures, "on_gpu", True)
    assert distance(cpu_world.train(case, "steady", "data.keep=memory", *more), expected, case) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_is_read_later_is_the_same(case: str, cpu_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated = "train.evaluate_every=5"
    expected = cpu_world.train(case, "at-once", evaluated)
    # As on a GPU.
    monkeypatch.setattr(Processes, "reads_at_once", False)
    assert_same(cpu_world.train(case, "later", evaluated), expected)
    assert cpu_world.rows(case, "later") == cpu_world.rows(case, "at-once")


@pytest.mark.slow
def test_checkpoints_are_written_at_their_steps_though_results_are_read_later(
    cpu_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Processes, "reads_at_once", False)
    written = []
    monkeypatch.setattr(
        "lr2ppo.training.run.write_checkpoint", lambda folder, keep, state, *_: written.append(state.step)
    )
    cpu_world.train("pointwise", "checkpoints", "safety.checkpoint_steps=7")
    assert written == [7, 14, 21]


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_a_replayed_run_learns_what_a_plain_run_learns(
    case: str, gpu_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed = gpu_world.train(case, "replayed")
    monkeypatch.setattr(Learner, "can_replay", False)
    assert distance(replayed, gpu_world.train(case, "plain"), case) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("keep", ["disk", "memory"])
def test_where_features_are_kept_changes_nothing(keep: str, case: str, gpu_world: World) -> None:
    on_gpu = gpu_world.train(case, f"gpu-and-{keep}", "data.keep=gpu")
    assert distance(gpu_world.train(case, keep, f"data.keep={keep}"), on_gpu, case) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_in_bfloat16_a_run_ends_near_that_in_float32(case: str, gpu_world: World) -> None:
    single, half = gpu_world.train(case, "single"), gpu_world.train(case, "half", "compute.precision=bf16")
    assert distance(half, single, case) < 0.1


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES)
def test_a_stopped_run_ends_as_an_uninterrupted_one(
    case: str, gpu_world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = ("safety.checkpoint_steps=4", "train.evaluate_every=4")
    whole = gpu_world.train(case, "whole", *checkpoints)
    monkeypatch.setattr("lr2ppo.training.run.READ_EVERY", 1)

    def write_and_stop(*arguments: Any) -> None:
        write_checkpoint(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("lr2ppo.training.run.write_checkpoint", write_and_stop)
        with pytest.raises(KeyboardInterrupt):
            gpu_world.train(case, "stopped", *checkpoints)
    assert_same(gpu_world.train(case, "stopped", *checkpoints), whole)


SHAPE = ModelConfig(head="pooled", attention="scaled", width=16, heads=4, dropout=0.0)
COMPUTE = ComputeConfig(
    precision="fp32", accumulate=1, checkpoint_activations=False, compile=False, strategy="ddp",
    compress_gradients=False,
)  # fmt: skip


def make_learner(processes: Processes, on_nonfinite: str) -> Learner[RelevanceRanker]:
    torch.manual_seed(0)
    optimizer = OptimizerConfig(learning_rate=1e-2, weight_decay=0.01, warmup=0.1)
    return Learner(RelevanceRanker(SHAPE), optimizer, 10, COMPUTE, processes, on_nonfinite)  # type: ignore[arg-type]


def learn_from(learner: Learner[RelevanceRanker], losses: list[float], names: list[str]) -> None:
    """Make a step with each loss; the first ones are found out last."""

    generator, device = torch.Generator().manual_seed(1), learner.processes.device
    text, frames = (torch.randn(*shape, 16, generator=generator).to(device) for shape in ((2, 3, 4), (2, 5)))

    def learn(target: Tensor) -> dict[str, Tensor]:
        scores = learner.parallel(text, frames)
        learner.backward((scores - target).square().mean())
        return {}

    step = learn if learner.processes.reads_at_once else Replayed(learn, learner)
    for loss, name in zip(losses, names, strict=True):
        step(torch.tensor(loss, device=device))
        learner.count([name])
    learner.settle()


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_step_that_is_not_finite_stops_the_run_with_its_step_and_clips(device: str) -> None:
    learner = make_learner(Processes(0, 1, choose_device(device)), "stop")
    with pytest.raises(
        UserError, match=r"step 3: found a loss of nan and gradients.* in encoder.*; clips c\. The weig"
    ):
        learn_from(learner, [1.0, 2.0, float("nan"), 1.0], ["a", "b", "c", "d"])
    two = make_learner(Processes(0, 1, choose_device(device)), "stop")
    learn_from(two, [1.0, 2.0], ["a", "b"])
    assert_same(learner.part("weights"), two.part("weights"))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_steps_that_are_not_finite_can_be_skipped_and_are_counted(device: str) -> None:
    learner = make_learner(Processes(0, 1, choose_device(device)), "skip")
    learn_from(learner, [1.0, float("inf"), 2.0, float("nan")], ["a", "b", "c", "d"])
    assert (learner.steps, learner.skipped) == (2, 2)
    two = make_learner(Processes(0, 1, choose_device(device)), "skip")
    learn_from(two, [1.0, 2.0], ["a", "c"])
    assert_same(learner.part("weights"), two.part("weights"))


def weights_after(updates: int, by_kernel: bool, device: str) -> dict[str, Tensor]:
    """Update a weight with a bfloat16 copy and one without; every third update is skipped."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    weight, plain = nn.Parameter(draw(37, 129)), nn.Parameter(draw(5))
    copy = nn.Parameter(weight.detach().bfloat16())
    groups = [{"params": [weight], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0}]
    optimizer = MixedAdamW(groups, 1e-2, {weight: copy}, by_kernel=by_kernel)
    for update in range(updates):
        copy.grad, plain.grad = draw(37, 129).bfloat16(), draw(5)
        skip, scale = torch.tensor(float(update % 3 == 2), device=device), torch.tensor(0.5, device=device)
        optimizer.update(skip, scale if update % 2 else None)
    state = optimizer.state[weight]
    return {"weight": weight.detach(), "plain": plain.detach(), "copy": copy.detach().float()} | {
        name: state[name] for name in ("exp_avg", "exp_avg_sq")
    }


@pytest.mark.gpu
def test_the_kernel_updates_as_torch_does() -> None:
    expected = weights_after(7, by_kernel=False, device="cuda")
    found = weights_after(7, by_kernel=True, device="cuda")
    for weights in (found, expected):
        # Rounded, of which a small difference makes a large one.
        del weights["copy"]
    assert distance(found, expected) < 1e-6


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_copy_follows_its_weight(device: str) -> None:
    made = weights_after(4, by_kernel=device == "cuda", device=device)
    assert torch.equal(made["copy"], made["weight"].bfloat16().float())
