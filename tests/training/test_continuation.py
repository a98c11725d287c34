"""A stopped run resumes, and ends as an uninterrupted one."""

import errno
import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lr2ppo.config.load import load_config
from lr2ppo.data import ClipDataset, FeatureStore, annotations, read_clips
from lr2ppo.data.dataset import collate
from lr2ppo.data.samplers import random_pairs
from lr2ppo.distributed import signals as interruption
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.files import read_json, write_json
from lr2ppo.policies.partial_order import PairRollout
from lr2ppo.stages.ppo import pack_rollouts, unpack_rollouts
from lr2ppo.tensors import read_tensors, write_tensors
from lr2ppo.training.run import TrainingRun
from tests.conftest import REPOSITORY
from tests.distributed.test_processes import SHIFTS
from tests.helpers.parallel_training import TRAIN
from tests.helpers.workspace import Workspace, wait_for

pytestmark = pytest.mark.slow

SETTINGS = {
    "pointwise": ["train.epochs=3", "train.max_labels=6", "train.evaluate_every=4", "compute.accumulate=2"],
    "finetune": ["train.epochs=2", "train.pairs_per_clip=4", "train.evaluate_every=3", "ranker=whole", "loss.name=ipo"],
    "reward": ["train.epochs=2", "train.pairs_per_clip=4", "train.evaluate_every=3", "ranker=whole"],
    "distill": ["train.epochs=2", "train.pairs_per_clip=4", "train.evaluate_every=3", "ranker=whole", "reward=whole"],
    "ppo": [
        *("train.epochs=3", "train.pairs_per_clip=5", "train.evaluate_every=2", "train.dropout=0.1"),
        *("train.batches_per_rollout=3", "train.passes=2", "ranker=pointwise/whole", "reward=whole"),
        *("policy.name=partial_order", "train.standard_errors=-1"),
    ],
}


class World:
    """The tiny world with an uninterrupted run of each stage, called `whole`."""

    def __init__(self, logs: Path, data: Path, alone: Processes) -> None:
        self.logs, self.data, self.alone = logs, data, alone
        for stage in TRAIN:
            self.train(stage, "whole")

    def train(self, stage: str, name: str, *more: str, fresh: bool = False) -> None:
        common = [f"logs={self.logs}", f"data.root={self.data}", f"name={name}", "data.frames=3", "device=cpu"]
        overrides = [*common, "train.clips_per_batch=8", *SETTINGS[stage], *more]
        config = load_config(REPOSITORY / "configs" / "mini" / f"{stage}.yaml", stage, overrides)
        torch.manual_seed(config.seed)
        TRAIN[stage](config, self.alone, fresh)

    def weights(self, stage: str, name: str) -> dict[str, bytes]:
        folder = self.logs / stage / name
        return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}

    def rows(self, stage: str, name: str) -> list[dict[str, Any]]:
        lines = (self.logs / stage / name / "metrics.jsonl").read_text().splitlines()
        return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def world(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("continued"), tiny_world, Processes(0, 1, torch.device("cpu")))


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Send the run a signal at its n-th possible checkpoint."""

    def arrange(number: int, sent: signal.Signals = signal.SIGTERM) -> None:
        real, count = TrainingRun.save_checkpoint, 0
        # Tests run in the background may have started with it ignored.
        monkeypatch.setattr(interruption, "handled_signals", lambda: interruption.STOPPING_SIGNALS)

        def checkpoint(self: TrainingRun[Any], *arguments: Any) -> None:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), sent)
            real(self, *arguments)

        monkeypatch.setattr(TrainingRun, "save_checkpoint", checkpoint)

    return arrange


@pytest.fixture
def leave_checkpoints(world: World, stop_at: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], list[Path]]:
    """Stops a run, of which every step is a checkpoint, at its fourth; returns those kept, the newest last."""

    def stop(stage: str, name: str) -> list[Path]:
        stop_at(4)
        with pytest.raises(SystemExit):
            world.train(stage, name, "safety.checkpoint_steps=1")
        monkeypatch.undo()
        return sorted((world.logs / stage / name / "checkpoints").glob("step-*"))

    return stop


def seal(file: Path) -> None:
    """Write the checksum of a changed file into its checkpoint, as someone would who makes a hostile one."""
    path = file.parent / "checksums.json"
    write_json(path, read_json(path) | {file.name: hashlib.sha256(file.read_bytes()).hexdigest()})


# In stage 3, checkpoint 1 is between rollouts, 5 between the steps of an update, 8 right after an update.
@pytest.mark.parametrize(
    ("stage", "moments"),
    [("pointwise", [1, 5]), ("finetune", [2]), ("reward", [3]), ("distill", [2]), ("ppo", [1, 5, 8])],
)
def test_a_run_stopped_and_continued_ends_with_the_same_bytes_and_rows(
    world: World, stop_at: Any, monkeypatch: pytest.MonkeyPatch, stage: str, moments: list[int]
) -> None:
    name = "stopped-" + "-".join(map(str, moments))
    for moment in moments:
        with monkeypatch.context():
            stop_at(moment)
            with pytest.raises(SystemExit) as ended:
                world.train(stage, name)
            assert ended.value.code == 143
        monkeypatch.undo()
    world.train(stage, name)
    assert world.rows(stage, name) == world.rows(stage, "whole")
    assert world.weights(stage, name) == world.weights(stage, "whole")
    continued, whole = (read_json(world.logs / stage / run / "finished.json") for run in (name, "whole"))
    assert continued["calibration"] == whole["calibration"]


@pytest.mark.parametrize("policy", ["exact", "grpo"])
def test_other_policies_continue_with_the_same_bytes_and_rows(
    world: World, stop_at: Any, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    more = (f"policy.name={policy}", "train.frozen_trunk=true")
    for moment in (1, 5):
        with monkeypatch.context():
            stop_at(moment)
            with pytest.raises(SystemExit):
                world.train("ppo", f"stopped-{policy}", *more)
        monkeypatch.undo()
    for name in (f"stopped-{policy}", f"whole-{policy}"):
        world.train("ppo", name, *more)
    assert world.rows("ppo", f"stopped-{policy}") == world.rows("ppo", f"whole-{policy}")
    assert world.weights("ppo", f"stopped-{policy}") == world.weights("ppo", f"whole-{policy}")
    start, trained = (world.weights(*run) for run in (("pointwise", "whole"), ("ppo", f"whole-{policy}")))
    assert start["best/model.safetensors"] != trained["checkpoints/last/model.safetensors"]


def test_a_run_goes_on_while_a_checkpoint_is_brought_to_the_disk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    went_on, found = threading.Event(), []
    fsync, real = os.fsync, TrainingRun.save_checkpoint

    def slow(handle: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            found.append(went_on.wait(timeout=60))
        fsync(handle)

    def save(self: TrainingRun[Any], *arguments: Any) -> None:
        if self.step == 4:
            went_on.set()
        real(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr("lr2ppo.training.checkpoint.os.fsync", slow)
        patched.setattr(TrainingRun, "save_checkpoint", save)
        world.train("pointwise", "slow-disk", "safety.checkpoint_steps=3")
    assert found
    assert all(found)
    world.train("pointwise", "fast-disk", "safety.checkpoint_steps=3")
    assert world.weights("pointwise", "slow-disk") == world.weights("pointwise", "fast-disk")


def test_a_disk_that_fails_a_checkpoint_stops_the_run_and_leaves_the_one_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, checkpoints = os.fsync, world.logs / "pointwise" / "failing" / "checkpoints"

    def failing(handle: int) -> None:
        if checkpoints.joinpath("step-0000003-00000").exists():
            raise OSError(errno.EIO, "Input/output error")
        fsync(handle)

    with monkeypatch.context() as patched:
        patched.setattr("lr2ppo.training.checkpoint.os.fsync", failing)
        with pytest.raises(UserError, match=r"(?s)checkpoints.*Input/output error.*earlier files are intact"):
            world.train("pointwise", "failing", "safety.checkpoint_steps=3")
    assert [path.name for path in checkpoints.glob("step-*")] == ["step-0000003-00000"]
    world.train("pointwise", "failing", "safety.checkpoint_steps=3")


def test_a_run_whose_folder_is_removed_ends_and_does_not_train_into_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, real = world.logs / "pointwise" / "vanishing", TrainingRun.save_checkpoint

    def save(self: TrainingRun[Any], *arguments: Any) -> None:
        if self.step == 3:
            shutil.rmtree(folder)
        real(self, *arguments)

    monkeypatch.setattr(TrainingRun, "save_checkpoint", save)
    # The command makes one message of it.
    with pytest.raises(FileNotFoundError, match="vanishing"):
        world.train("pointwise", "vanishing", "safety.checkpoint_steps=1")


@pytest.mark.parametrize(
    "damage", ["a byte flipped", "", '{"seen": null}', '{"stored": {"rollouts": -1}}', "no state", "another's file"]
)
def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    world: World,
    leave_checkpoints: Callable[[str, str], list[Path]],
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    name = f"damaged-{hashlib.sha256(damage.encode()).hexdigest()[:8]}"
    kept = leave_checkpoints("reward", name)
    assert [path.name for path in kept] == ["step-0000003-00000", "step-0000004-00000"]
    if damage == "a byte flipped":
        weights = kept[-1] / "-weights.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    elif damage == "another's file":
        checksums, outside = read_json(kept[-1] / "checksums.json"), "../../config.yaml"
        checksums[outside] = hashlib.sha256((kept[-1] / outside).read_bytes()).hexdigest()
        write_json(kept[-1] / "checksums.json", checksums)
    else:
        path = kept[-1] / ("state.json" if damage == "no state" else "process-0.json")
        path.write_text("{}" if damage == "no state" else damage, encoding="utf-8")
        seal(path)
    capsys.readouterr()
    world.train("reward", name, "safety.checkpoint_steps=1")
    printed = capsys.readouterr().out
    assert "step-0000004-00000: is damaged" in printed
    assert f"resuming from {kept[0]}" in printed
    assert world.rows("reward", name) == world.rows("reward", "whole")
    assert world.weights("reward", name) == world.weights("reward", "whole")


@pytest.mark.parametrize("damage", ["fewer rows", "tensors as text"])
def test_a_checkpoint_whose_other_files_do_not_fit_resumes_to_no_traceback(
    world: World, leave_checkpoints: Callable[[str, str], list[Path]], damage: str
) -> None:
    name = f"misfit-{damage[:5]}"
    newest, folder = leave_checkpoints("pointwise", name)[-1], world.logs / "pointwise" / name
    if damage == "fewer rows":
        # Not made longer, which would fill it with zeros.
        rows = (folder / "metrics.jsonl").read_bytes()
        (folder / "metrics.jsonl").write_bytes(rows[:-10])
        with pytest.raises(UserError, match=rf"metrics\.jsonl has {len(rows) - 10:,} bytes, and had {len(rows):,}"):
            world.train("pointwise", name, "safety.checkpoint_steps=1")
        assert (folder / "metrics.jsonl").read_bytes() == rows[:-10]
        return
    path = newest / "process-0.json"
    write_json(path, read_json(path) | {"tensors": {}})
    seal(path)
    world.train("pointwise", name, "safety.checkpoint_steps=1")
    assert world.weights("pointwise", name) == world.weights("pointwise", "whole")


@pytest.mark.parametrize("part", ["weights", "exp_avg"])
@pytest.mark.parametrize("shape", [None, (3, 3)])
def test_a_checkpoint_of_another_model_is_refused(
    world: World,
    leave_checkpoints: Callable[[str, str], list[Path]],
    part: str,
    shape: tuple[int, int] | None,
) -> None:
    name = f"other-{part}-{'shape' if shape else 'name'}"
    newest = leave_checkpoints("pointwise", name)[-1]
    path = newest / f"-{part}.safetensors"
    tensors = read_tensors(path)
    first = next(iter(tensors))
    write_tensors(path, {("other" if each == first else each): tensor for each, tensor in tensors.items()})
    if shape:
        write_tensors(path, tensors | {first: torch.zeros(shape)})
    seal(path)
    with pytest.raises(
        UserError, match=f"{newest.name}: does not fit this run: .*its {part} are not those of the model"
    ):
        world.train("pointwise", name, "safety.checkpoint_steps=1")


@pytest.mark.parametrize("changed", ["train", "fewer clips", "validation", "features", "ranker"])
def test_a_run_resumes_only_with_the_data_it_started_with(
    world: World, stop_at: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, changed: str
) -> None:
    data, name = shutil.copytree(world.data, tmp_path / "data"), f"data-{changed.replace(' ', '-')}"
    source = shutil.copytree(world.logs / "pointwise" / "whole", tmp_path / "source")
    more = (f"data.root={data}", f"ranker={source}")
    with monkeypatch.context():
        stop_at(2)
        with pytest.raises(SystemExit):
            world.train("reward", name, *more)
    monkeypatch.undo()
    folder = world.logs / "reward" / name
    assert read_json(folder / "inputs.json").keys() == {"train", "validation", "features", "ranker"}
    checkpoint = sorted((folder / "checkpoints").iterdir())
    what = change_data(data, source, changed)
    with pytest.raises(UserError, match=f"{what}: found other content"):
        world.train("reward", name, *more)
    assert sorted((folder / "checkpoints").iterdir()) == checkpoint
    world.train("reward", name, *more, fresh=True)


def change_data(data: Path, source: Path, changed: str) -> str:
    """Change something of what a reward run reads; return how messages name it."""
    if changed == "ranker":
        weights = source / "best" / "model.safetensors"
        tensors = load_file(weights)
        save_file({name: tensor + 1 for name, tensor in tensors.items()}, weights)
        return "the weights of its ranker run"
    if changed == "features":
        pairs = read_json(data / annotations.TARGET_PAIRS)
        with h5py.File(data / "clean_feat.h5", "a") as file:
            file[pairs[0]["id"]]["img_emb"][0, 0, 0] += 1
        return "the features of these clips"
    path = data / (annotations.VALIDATION if changed == "validation" else annotations.TARGET_PAIRS)
    clips = read_json(path)
    if changed == "train":
        clips[0]["index"] = [pair[::-1] for pair in clips[0]["index"]]
    elif changed == "validation":
        clips[0]["tags"][0]["target"] = (int(clips[0]["tags"][0]["target"]) + 1) % 3
    else:
        clips = clips[:-1]
    write_json(path, clips)
    return f"the annotations of data.{'validation' if changed == 'validation' else 'train'}"


def test_data_may_move_and_a_run_of_an_earlier_version_kept_no_fingerprints(
    world: World, stop_at: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, old in (("moved", False), ("old", True)):
        with monkeypatch.context():
            stop_at(2)
            with pytest.raises(SystemExit):
                world.train("pointwise", name)
        monkeypatch.undo()
        if old:
            (world.logs / "pointwise" / name / "inputs.json").unlink()
        world.train("pointwise", name, f"data.root={shutil.copytree(world.data, tmp_path / name)}")
        assert world.weights("pointwise", name) == world.weights("pointwise", "whole")


def test_a_run_resumes_only_with_the_settings_it_started_with(
    world: World, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at(1, signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        world.train("reward", "other")
    assert ended.value.code == 130
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"(?s)train.learning_rate: found 0.5, the run started with 0.001"):
        world.train("reward", "other", "train.learning_rate=0.5")
    world.train("reward", "other", "safety.keep=1", "data.workers=1")


def test_a_finished_run_keeps_no_checkpoint_and_is_not_started_again(world: World) -> None:
    assert not list((world.logs / "reward" / "whole" / "checkpoints").glob("step-*"))
    with pytest.raises(UserError, match="exists and is finished"):
        world.train("reward", "whole")


def test_fresh_reports_what_it_removes(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.train("reward", "again")
    capsys.readouterr()
    world.train("reward", "again", fresh=True)
    assert "removing the finished run" in capsys.readouterr().out


def test_the_best_weights_are_those_of_the_whole_run(
    world: World, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the best weights came before the interruption."""
    stop_at(6)
    with pytest.raises(SystemExit):
        world.train("pointwise", "best")
    monkeypatch.undo()
    world.train("pointwise", "best")
    finished = [
        json.loads((world.logs / "pointwise" / name / "finished.json").read_text()) for name in ("whole", "best")
    ]
    assert finished[0]["best_step"] == finished[1]["best_step"]
    assert finished[0]["best_metric"] == finished[1]["best_metric"]


def test_rollouts_are_divided_again_over_another_number_of_processes(world: World) -> None:
    """What two processes stored is restored by one, and the other way round."""
    store = FeatureStore([world.data / "clean_feat.h5"])
    clips = read_clips(world.data / annotations.TARGET_TRAIN)
    dataset = ClipDataset(clips, store, frames=3)
    requests = random_pairs(clips, pairs_per_clip=5, visits=1)(np.random.default_rng(0))[:8]

    def rollout(part: slice) -> PairRollout:
        batch = collate([dataset[request] for request in requests[part]])
        values = torch.arange(8.0)[part].unsqueeze(1).expand(-1, 5)
        scores = values.unsqueeze(-1).expand(-1, -1, 2)
        return PairRollout(batch, scores, scores.long(), values, values + 0.5)

    whole, halves = rollout(slice(8)), [rollout(slice(4)), rollout(slice(4, 8))]
    stored = {1: [pack_rollouts([whole, whole], 3)], 2: [pack_rollouts([half, half], 3) for half in halves]}
    for before, after in ((2, 1), (1, 2), (2, 2)):
        for rank in range(after):
            again, learned = unpack_rollouts(
                PairRollout, stored[before], dataset, Processes(rank, after, torch.device("cpu"))
            )
            wanted = whole if after == 1 else halves[rank]
            assert (len(again), learned) == (2, 3)
            for name in ("scores", "proposed", "reward", "value"):
                assert torch.equal(getattr(again[1], name), getattr(wanted, name))
            for name in ("clips", "labels", "pairs", "text", "frames", "seeds"):
                assert torch.equal(getattr(again[1].batch, name), getattr(wanted.batch, name))


@pytest.mark.parametrize(("strategy", "before", "after"), [("ddp", 2, 1), ("fsdp", 2, 1), ("ddp", 1, 2)])
def test_another_number_of_processes_resumes_a_run(
    world: World, tiny_world: Path, tmp_path: Path, strategy: str, before: int, after: int
) -> None:
    workspace = Workspace.make(tmp_path)
    command = ["sh", "reward_pair_dataloader.sh", "moved", f"data.root={tiny_world}", f"logs={tmp_path / 'logs'}"]
    command += [
        f"compute.strategy={strategy}",
        "data.frames=3",
        "model.dropout=0",
        *SETTINGS["reward"][:-1],
        "ranker=none",
        "device=cpu",
    ]
    clips = f"train.clips_per_batch={8 // before}"
    started = workspace.start(*command, clips, "safety.checkpoint_steps=1", processes=before)
    checkpoints = tmp_path / "logs" / "reward" / "moved" / "checkpoints"
    wait_for(lambda: any(checkpoints.glob("step-*")))
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 143
    assert "resuming from" in workspace.ok(*command, clips, processes=after)
    world.train("reward", "moved", "ranker=none", "model.dropout=0", fresh=True)
    resumed, whole = (
        load_file(logs / "reward" / "moved" / "checkpoints" / "last" / "model.safetensors")
        for logs in (tmp_path / "logs", world.logs)
    )
    for name, tensor in whole.items():
        if name not in SHIFTS["reward"]:
            assert (resumed[name] - tensor).norm() <= 1e-5 * tensor.norm()


def test_a_run_killed_before_it_wrote_anything_starts_again(world: World) -> None:
    folder = world.logs / "reward" / "early"
    folder.mkdir()
    (folder / ".config.yaml-half").write_text("seed")
    world.train("reward", "early")
    assert world.weights("reward", "early") == world.weights("reward", "whole")


def test_a_folder_that_is_no_run_is_not_removed_unasked(world: World) -> None:
    folder = world.logs / "reward" / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not a run"):
        world.train("reward", "thesis")
    assert (folder / "chapter.txt").exists()


def test_a_run_with_checkpointed_activations_resumes_too(
    world: World, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its networks are wrapped, which changes the names of their weights in the model."""
    world.train("pointwise", "thrifty", "compute.checkpoint_activations=true")
    stop_at(3)
    with pytest.raises(SystemExit):
        world.train("pointwise", "thrifty-stopped", "compute.checkpoint_activations=true")
    monkeypatch.undo()
    world.train("pointwise", "thrifty-stopped", "compute.checkpoint_activations=true")
    assert world.rows("pointwise", "thrifty-stopped") == world.rows("pointwise", "thrifty")
    assert world.weights("pointwise", "thrifty-stopped") == world.weights("pointwise", "thrifty")
