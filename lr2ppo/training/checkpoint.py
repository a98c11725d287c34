"""The whole state of a run in progress: written now and then, and read again after an interruption."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.files import write_json
from lr2ppo.tensors import read_tensors, write_tensors
from lr2ppo.training.learner import Learner

STATE, CHECKSUMS, TEMPORARY = "state.json", "checksums.json", ".partial"
RANDOM = "random."


@dataclass
class State:
    """Where a run is: what all its processes have in common."""

    step: int = 0
    # Which epoch it is in, and how many of its requests have been learned from.
    epoch: int = 0
    requests: int = 0
    # Requests of a batch over all processes, which stays when their number changes.
    global_batch: int = 0
    processes: int = 1
    best: float | None = None
    best_step: int = 0
    seconds: float = 0.0
    # How long `metrics.jsonl` was: what was written since is written again.
    metrics_bytes: int = 0
    # Of each learner.
    counters: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class ProcessState:
    """What each process keeps by itself: values seen since the last evaluation, and what the stage stores."""

    seen: list[dict[str, float]] = field(default_factory=list)
    stored: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    folder: Path
    state: State

    def restore(self, learners: Mapping[str, Learner[Any]]) -> None:
        """Put weights, optimizers and schedules back where they were."""
        for name, learner in learners.items():
            for part in Learner.PARTS:
                learner.restore(part, read_tensors(self.folder / f"{name}-{part}.safetensors"))
            learner.restore_counters(self.state.counters[name])

    def read_process_states(self) -> list[ProcessState]:
        """What each of the processes that wrote it had, by rank, without their random states."""
        found = []
        for rank in range(self.state.processes):
            facts = json.loads((self.folder / f"process-{rank}.json").read_text(encoding="utf-8"))
            tensors = read_tensors(self.folder / f"process-{rank}.safetensors")
            found.append(ProcessState(tensors={k: t for k, t in tensors.items() if not k.startswith(RANDOM)}, **facts))
        return found

    def restore_random(self, processes: Processes) -> None:
        """Go on drawing where this process stopped; one that was not there keeps its own state."""
        if processes.rank < self.state.processes:
            tensors = read_tensors(self.folder / f"process-{processes.rank}.safetensors")
            torch.set_rng_state(tensors[RANDOM + "cpu"])
            if processes.device.type == "cuda" and RANDOM + "cuda" in tensors:
                torch.cuda.set_rng_state(tensors[RANDOM + "cuda"], processes.device)


def write_checkpoint(
    folder: Path,
    keep: int,
    state: State,
    own: ProcessState,
    learners: Mapping[str, Learner[Any]],
    processes: Processes,
    substep: int = 0,
) -> None:
    """Write `folder/step-N-SUBSTEP`, whole before it takes its name, and keep the newest `keep`.

    Every process calls it. Raises `UserError` where the disk does not take it; earlier ones stay as they are.
    """
    target = folder / f"step-{state.step:07}-{substep:05}"
    partial = folder / f"{TEMPORARY}-{target.name}"
    if processes.is_main:
        for left in folder.glob(f"{TEMPORARY}-*"):
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    processes.barrier()
    for name, learner in learners.items():
        # One part after the other: writing one takes as much memory again.
        for part in Learner.PARTS:
            tensors = learner.part(part)
            if processes.is_main:
                write_tensors(partial / f"{name}-{part}.safetensors", tensors)
    write_tensors(partial / f"process-{processes.rank}.safetensors", own.tensors | _random_states(processes))
    write_json(partial / f"process-{processes.rank}.json", {"seen": own.seen, "stored": own.stored})
    processes.barrier()
    if processes.is_main:
        write_json(partial / STATE, asdict(state))
        write_json(partial / CHECKSUMS, {path.name: _checksum(path) for path in sorted(partial.iterdir())})
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        if target.exists():
            shutil.rmtree(target)
        partial.replace(target)
        _sync(folder)
        for old in _checkpoints(folder)[keep:]:
            shutil.rmtree(old)
    processes.barrier()


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint under a folder that is whole, and what is wrong with those that are newer."""
    faults: list[str] = []
    for place in _checkpoints(folder):
        try:
            return _read(place), faults
        except (OSError, ValueError, TypeError, KeyError) as error:
            faults.append(f"{place}: is damaged ({error}); going back to the one before it")
    return None, faults


def remove_checkpoints(folder: Path) -> None:
    """Remove the checkpoints that a finished run does not need any more."""
    for place in _checkpoints(folder):
        shutil.rmtree(place)


def check_space(folder: Path, learners: Mapping[str, Learner[Any]]) -> None:
    """Raises `UserError` where the disk has no room for one checkpoint and the best weights."""
    weights = sum(parameter.numel() for learner in learners.values() for parameter in learner.model.parameters())
    # Weights and two moments, and once more the weights as the best ones.
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    needed, free = 4 * weights * (len(Learner.PARTS) + 1), shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{folder}: found {free / 2**30:.2f} GiB free on its disk, wanted {needed / 2**30:.2f} GiB "
            "for a checkpoint and the best weights; make room, or give another logs=FOLDER"
        )


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints there are, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _read(place: Path) -> Checkpoint:
    checksums = json.loads((place / CHECKSUMS).read_text(encoding="utf-8"))
    if STATE not in checksums:
        raise ValueError(f"{CHECKSUMS} names no {STATE}")
    for name, wanted in checksums.items():
        if _checksum(place / name) != wanted:
            raise ValueError(f"{name} has another checksum")
    return Checkpoint(place, State(**json.loads((place / STATE).read_text(encoding="utf-8"))))


def _random_states(processes: Processes) -> dict[str, Tensor]:
    states = {RANDOM + "cpu": torch.get_rng_state()}
    if processes.device.type == "cuda":
        states[RANDOM + "cuda"] = torch.cuda.get_rng_state(processes.device)
    return states


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of files, to the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
