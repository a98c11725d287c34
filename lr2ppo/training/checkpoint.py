"""Checkpoints: the full state of a run in progress, to resume it after an interruption."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor

from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError, advise, show
from lr2ppo.files import file_fingerprint, read_json, write_json
from lr2ppo.runs.records import Whole, explain_faults
from lr2ppo.tensors import read_tensors, write_tensors
from lr2ppo.training.learner import Learner
from lr2ppo.training.writer import Writer

STATE, CHECKSUMS, TEMPORARY = "state.json", "checksums.json", ".partial"
RANDOM = "random."
T = TypeVar("T")


@checked_dataclass(config=ConfigDict(strict=True))
class State:
    """The state that all processes of a run share."""

    step: Whole = 0
    # The current epoch, and how many of its requests have been trained on.
    epoch: Whole = 0
    requests: Whole = 0
    # Requests per batch over all processes; stays fixed if their number changes.
    global_batch: Whole = 0
    processes: Whole = 1
    best: float | None = None
    best_step: Whole = 0
    # The NDCG of each validation clip at the step with the highest mean, if later steps are compared with it.
    highest: list[float] = field(default_factory=list)
    seconds: float = 0.0
    # The size of `metrics.jsonl`: later rows are written again.
    metrics_bytes: Whole = 0
    # By learner.
    counters: dict[str, dict[str, Any]] = field(default_factory=dict)


@checked_dataclass(config=ConfigDict(strict=True, arbitrary_types_allowed=True))
class ProcessState:
    """The state of one process: values observed since the last evaluation, and what the stage stores."""

    seen: list[dict[str, float]] = field(default_factory=list)
    stored: dict[str, Whole] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    state: State

    def restore(self, learners: Mapping[str, Learner[Any]]) -> None:
        """Restore weights, optimizers and schedules."""
        with self.fitting():
            for name, learner in learners.items():
                for part in Learner.PARTS:
                    learner.restore(part, read_tensors(self.folder / f"{name}-{part}.safetensors"))
                learner.restore_counters(self.state.counters[name])

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """Within the context, what does not fit the run, as if another program wrote it, is raised as `UserError`."""
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"{self.folder}: does not fit this run: {show(f'{type(error).__name__}: {error}')}; remove this "
                "checkpoint, to resume from the one before"
            ) from None

    def read_process_states(self) -> list[ProcessState]:
        """Read the states of the processes that wrote the checkpoint, by rank, without their random states."""
        found = []
        for rank in range(self.state.processes):
            own = _build(ProcessState, self.folder / f"process-{rank}.json")
            tensors = read_tensors(self.folder / f"process-{rank}.safetensors")
            found.append(replace(own, tensors={k: t for k, t in tensors.items() if not k.startswith(RANDOM)}))
        return found

    def restore_random(self, processes: Processes) -> None:
        """Restore this process's random state; a process that did not write the checkpoint keeps its own."""
        if processes.rank < self.state.processes:
            tensors = read_tensors(self.folder / f"process-{processes.rank}.safetensors")
            with self.fitting():
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
    writer: Writer,
    substep: int = 0,
) -> None:
    """Write `folder/step-N-SUBSTEP` atomically, and keep the newest `keep` checkpoints.

    The `writer` waits for the disk and gives the checkpoint its name while the run goes on: it is complete after
    `writer.wait()`. Every process calls it. Raises `UserError` if the disk cannot be written, also of what the writer
    wrote before; earlier checkpoints are unchanged.
    """
    # A run that resumes from here needs the best weights that the state names.
    writer.wait()
    target = folder / f"step-{state.step:07}-{substep:05}"
    partial = folder / f"{TEMPORARY}-{target.name}"
    if processes.is_main:
        for left in folder.glob(f"{TEMPORARY}-*"):
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    processes.barrier()
    for name, learner in learners.items():
        # One part at a time: writing a part takes its memory again.
        for part in Learner.PARTS:
            tensors = learner.part(part)
            if processes.is_main:
                write_tensors(partial / f"{name}-{part}.safetensors", tensors)
    write_tensors(partial / f"process-{processes.rank}.safetensors", own.tensors | _random_states(processes))
    write_json(partial / f"process-{processes.rank}.json", {"seen": own.seen, "stored": own.stored})
    processes.barrier()
    if processes.is_main:
        write_json(partial / STATE, asdict(state))
        writer.start(lambda: _complete(partial, target, keep))


def _complete(partial: Path, target: Path, keep: int) -> None:
    """Bring the files of a checkpoint to the disk, give it its name, and remove older ones."""
    try:
        write_json(partial / CHECKSUMS, {path.name: file_fingerprint(path) for path in sorted(partial.iterdir())})
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        if target.exists():
            shutil.rmtree(target)
        partial.replace(target)
        _sync(target.parent)
        for old in _checkpoints(target.parent)[keep:]:
            shutil.rmtree(old)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{target}: cannot be written: {reason}; earlier files are intact; {advise(error)}") from None


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Find the newest complete checkpoint in a folder, and what is wrong with newer ones."""
    faults: list[str] = []
    for place in _checkpoints(folder):
        try:
            return _read(place), faults
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            faults.append(f"{place}: is damaged ({error}); using the one before it")
    return None, faults


def remove_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a finished run."""
    for place in _checkpoints(folder):
        shutil.rmtree(place)


def check_space(folder: Path, learners: Mapping[str, Learner[Any]]) -> None:
    """Raise `UserError` if the disk has no room for one checkpoint and the best weights."""
    weights = sum(parameter.numel() for learner in learners.values() for parameter in learner.model.parameters())
    # Weights and two moments, and the best weights.
    place = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    needed, free = 4 * weights * (len(Learner.PARTS) + 1), shutil.disk_usage(place).free
    if free < needed:
        raise UserError(
            f"{folder}: found {free / 2**30:.2f} GiB free on its disk, wanted {needed / 2**30:.2f} GiB "
            "for a checkpoint and the best weights; free space, or use another logs=FOLDER"
        )


def _checkpoints(folder: Path) -> list[Path]:
    """All checkpoints in a folder, newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _read(place: Path) -> Checkpoint:
    checksums = read_json(place / CHECKSUMS)
    if STATE not in checksums:
        raise ValueError(f"{CHECKSUMS} has no entry for {STATE}")
    for name, wanted in checksums.items():
        if Path(name).name != name or name == "..":
            raise ValueError(f"{CHECKSUMS} names {show(name)}, wanted files of its folder")
        if file_fingerprint(place / name) != wanted:
            raise ValueError(f"{name} has a different checksum")
    state = _build(State, place / STATE)
    if not state.global_batch or not state.processes:
        raise ValueError(f"{STATE} says nothing of the run's batches and processes")
    for rank in range(state.processes):
        _build(ProcessState, place / f"process-{rank}.json")
    return Checkpoint(place, state)


def _build(kind: Callable[..., T], path: Path) -> T:
    try:
        return kind(**read_json(path))
    except ValidationError as error:
        raise ValueError(f"{path.name}: {explain_faults(error)}") from None


def _random_states(processes: Processes) -> dict[str, Tensor]:
    states = {RANDOM + "cpu": torch.get_rng_state()}
    if processes.device.type == "cuda":
        states[RANDOM + "cuda"] = torch.cuda.get_rng_state(processes.device)
    return states


def _sync(path: Path) -> None:
    """Flush a file, or a folder's list of files, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
