"""Run folders `logs/<stage>/<name>/`: making them, finding earlier ones, and what is written there."""

import json
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from lr2ppo.config.load import config_leaves, dump_config
from lr2ppo.config.schema import ComputeConfig, TrainingConfig
from lr2ppo.data.features.encoders import FEATURES_FILE, differing_facts, read_features_file, write_features_file
from lr2ppo.data.features.store import FeatureStore
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError, raise_faults
from lr2ppo.evaluation.scoring import Evaluation
from lr2ppo.files import write_json, write_whole
from lr2ppo.runs.lock import lock_run
from lr2ppo.runs.lookup import FINISHED, METRICS, best_validation, read_run
from lr2ppo.runs.stages import STAGES
from lr2ppo.training.checkpoint import Checkpoint, State, newest_checkpoint, remove_checkpoints
from lr2ppo.training.progress import Progress, time_left
from lr2ppo.training.provenance import describe_machine, describe_program
from lr2ppo.training.tensorboard import Board

CHECKPOINTS = "checkpoints"
# What may be another when a run goes on: it changes no result, or the run keeps its own (the batch of all processes).
FREE_KEYS = (
    *("logs", "device", "data.root", "data.workers", "train.clips_per_batch", "safety."),
    *(f"compute.{key}" for key in ComputeConfig.model_fields if key != "accumulate"),
)
# What a line on the screen holds of an evaluation; `metrics.jsonl` and TensorBoard have it all.
SHOWN = ("loss", "accuracy", "reward", "reversed", "ndcg@1", "ndcg@5", "ndcg", "pair_accuracy")
# A run is pictured in TensorBoard at most once in each such part of its steps.
PICTURED_PARTS = 5
# What of a config is of this machine alone, or changes no result: no setting to compare runs by.
NO_SETTINGS = ("name", "logs", "device", "data.root", "data.workers", "safety.")
# Writes a model into a folder; every process calls it, for the weights may be spread over them.
Save = Callable[[Path], None]


@dataclass(frozen=True)
class Start:
    """How a run starts: the config, and the checkpoint it goes on from (None: anew)."""

    config: Any
    checkpoint: Checkpoint | None
    notes: tuple[str, ...] = ()


class Run:
    """A training run's folder; only the main process writes to it and to the screen."""

    def __init__(self, config: TrainingConfig, processes: Processes, start: Start, store: FeatureStore) -> None:
        """Start the run's folder anew, which `claim_run` has said that it may, or go on where a checkpoint was written.

        Raises `UserError` where the run was begun with another config, or learned from features of other encoders.
        """
        checkpoint = start.checkpoint
        self.folder, self.select = run_folder(config), STAGES[config.stage].selects
        leaves = dict(config_leaves(config.model_dump(mode="json")))
        self._settings = {key: value for key, value in leaves.items() if not key.startswith(NO_SETTINGS)}
        self.is_main = processes.is_main
        self._processes = processes
        self.best: float | None = None
        self.best_step = 0
        self._started = time.time()
        if checkpoint is not None:
            _check_same(self.folder, config)
            _check_encoding(self.folder, store)
            self.best, self.best_step = checkpoint.state.best, checkpoint.state.best_step
            self._started -= checkpoint.state.seconds
        if not self.is_main:
            return
        if checkpoint is None:
            _remove(self.folder)
            self.folder.mkdir(parents=True)
            text = dump_config(config)
            write_whole(self.folder / "config.yaml", lambda partial: partial.write_text(text, encoding="utf-8"))
        else:
            os.truncate(self.folder / METRICS, checkpoint.state.metrics_bytes)
        write_features_file(self.folder, store.encoding, store.paths)
        self._metrics = (self.folder / METRICS).open("a", encoding="utf-8")
        self._log = (self.folder / "train.log").open("a", encoding="utf-8")
        purged = None if checkpoint is None else checkpoint.state.step + 1
        self._board = Board(self.folder, config.data.root, purged)
        for note in start.notes:
            self.say(note)
        if checkpoint is not None:
            self.say(f"going on from {checkpoint.folder}")

    def say(self, text: str) -> None:
        """One line on the screen, clear of progress bars, and in `train.log` with the time."""
        if self.is_main:
            tqdm.write(text)
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self._log.flush()

    def progress(self, steps: int, done: int) -> Progress:
        """What shows and writes how far the run is."""
        return Progress(self.folder, self.select, self.best, steps, done, self.is_main)

    def record(
        self,
        step: int,
        steps: int,
        train: Mapping[str, float],
        evaluation: Evaluation,
        save: Save,
        seconds_left: float | None = None,
    ) -> None:
        """Log an evaluation and say it in a line; save the model in `best/` where validation is best so far."""
        validation = evaluation.metrics
        scalars = {f"train/{name}": value for name, value in train.items()}
        scalars |= {f"validation/{name}": value for name, value in validation.items()}
        improved = self.best is None or validation[self.select] > self.best
        # The first best of a part, which the best step before tells: so it is in a run that goes on, too.
        pictured = improved and (self.best is None or _part(step, steps) > _part(self.best_step, steps))
        if improved:
            self.best, self.best_step = validation[self.select], step
            save(self.folder / "best")
        if not self.is_main:
            return
        row = {"step": step, "seconds": round(time.time() - self._started, 3), **scalars}
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        self._board.log(step, scalars, evaluation, pictured)
        shown = [f"{name} {value:.4f}" for name, value in [*train.items(), *validation.items()] if name in SHOWN]
        shown += ["best so far"] * improved
        shown += [] if seconds_left is None else [time_left(seconds_left)]
        self.say(f"step {step:>{len(str(steps))}}/{steps}  {'  '.join(shown)}")

    def note_in(self, state: State) -> None:
        """Put into a checkpoint's state what the run's files go on from."""
        state.best, state.best_step, state.seconds = self.best, self.best_step, time.time() - self._started
        if self.is_main:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())
            state.metrics_bytes = os.path.getsize(self._metrics.name)

    def finish(self, step: int, models: Mapping[str, Save]) -> None:
        """Save the last weights under `checkpoints/last/` (the critic beside its actor) and mark the run finished."""
        for name, save in models.items():
            save(self.folder / CHECKPOINTS / "last" / name)
        if not self.is_main:
            return
        seconds = round(time.time() - self._started, 1)
        write_json(
            self.folder / FINISHED,
            {
                "steps": step,
                "best_metric": self.best,
                "best_step": self.best_step,
                "seconds": seconds,
                "peak_memory_gib": round(peak_memory_gib(), 2),
                "finished": time.time(),
                **describe_program(),
                "machine": describe_machine(self._processes),
            },
        )
        self._board.log_result(step, self._settings, best_validation(self.folder))
        self.say(f"finished in {seconds:.0f} s; best weights (step {self.best_step}) are in {self.folder / 'best'}")


def claim_run(config: TrainingConfig, processes: Processes, fresh: bool) -> Start:
    """Take a run's name for this process, and find out whether the run starts anew or goes on.

    Raises `UserError` where the name is missing or malformed, its run is finished (unless `fresh`, which removes it),
    another process is at work on it, or its folder holds something else.
    """
    folder = run_folder(config)
    if not processes.is_main:
        return _as_begun(config, processes.gather(None)[0])
    # A process that its launcher started again goes on, whatever was asked for at first.
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    lock_run(folder)
    found = (None, ()) if not folder.exists() or (fresh and not restarted) else _find_checkpoint(folder)
    return _as_begun(config, processes.gather(found)[0])


def _find_checkpoint(folder: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    if (folder / FINISHED).exists():
        # A run that was killed as it finished may have left some.
        remove_checkpoints(folder / CHECKPOINTS)
        raise UserError(
            f"{folder}: there is a run of this name already, which is finished; "
            "take another name, or add --fresh to remove it and start anew"
        )
    if all(path.name.startswith(".") for path in folder.iterdir()):
        # A run that was killed before it had written anything.
        return None, ()
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: is there already and is no run of ours; take another name, or --fresh to remove it")
    checkpoint, faults = newest_checkpoint(folder / CHECKPOINTS)
    return checkpoint, tuple(faults)


def _as_begun(config: TrainingConfig, found: Any) -> Start:
    """A run that goes on keeps the earlier runs that it began from, whichever are the newest now."""
    checkpoint, notes = found
    if checkpoint is not None:
        begun = read_run(run_folder(config))
        kept = {key: begun[key] for key in ("ranker", "reward") if getattr(config, key, None) == "newest"}
        config = config.model_copy(update=kept)
    return Start(config, checkpoint, notes)


def _check_same(folder: Path, config: TrainingConfig) -> None:
    """Raises `UserError` where a run that goes on was begun with settings that lead elsewhere."""
    begun, wanted = (dict(config_leaves(tree)) for tree in (read_run(folder), config.model_dump(mode="json")))
    differing = [
        f"{key}: found {wanted.get(key)!r}, the run was begun with {begun.get(key)!r}"
        for key in sorted(begun.keys() | wanted.keys())
        if begun.get(key) != wanted.get(key) and not key.startswith(FREE_KEYS)
    ]
    raise_faults(
        folder, differing, "a run goes on with the settings it was begun with; take another name, or add --fresh"
    )


def _part(step: int, steps: int) -> int:
    return step * PICTURED_PARTS // steps


def _check_encoding(folder: Path, store: FeatureStore) -> None:
    """Raises `UserError` where a run that goes on would learn from features that other encoders made."""
    # Runs begun before there was such a file tell nothing of it.
    if (folder / FEATURES_FILE).is_file():
        differing = differing_facts(store.encoding, read_features_file(folder))
        raise_faults(
            folder,
            [f"{store.paths[0]}: made with {fact}" for fact in differing],
            "a run goes on with features of the encoders it was begun with; take another name, or add --fresh",
        )


def _remove(folder: Path) -> None:
    """Remove a run's folder, and say what that was."""
    if folder.exists():
        files = [path for path in folder.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 2**20
        state = "finished" if (folder / FINISHED).exists() else "unfinished"
        tqdm.write(f"removing the {state} run in {folder}: {len(files)} files, {size:.1f} MiB")
        # Out of the way at once: half a folder would be no run's.
        leaving = folder.rename(folder.with_name(f".{folder.name}.removed-{os.getpid()}"))
        shutil.rmtree(leaving)


def run_folder(config: TrainingConfig) -> Path:
    """`logs/<stage>/<name>`; raises `UserError` where the name is missing or cannot be a folder's."""
    if config.name is None:
        raise UserError(f"name: is missing; run sh {STAGES[config.stage].script} NAME, or give name=NAME")
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", config.name):
        raise UserError(f"name: found {config.name!r}, wanted letters, digits and . _ + - alone, such as demo-2")
    return config.logs / config.stage / config.name


def peak_memory_gib() -> float:
    """The most memory this process held, on the GPU where it used one."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)
