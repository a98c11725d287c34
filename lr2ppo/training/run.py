"""A training run, from its config to its finished folder; stopped at any batch, it resumes exactly."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from lr2ppo.config.schema import RunConfig
from lr2ppo.data.annotations import Need, graded
from lr2ppo.data.dataset import ClipBatch, ClipRequest, open_store
from lr2ppo.data.features.encoders import write_features_file
from lr2ppo.data.features.kept import keep_features
from lr2ppo.data.features.store import FeatureStore
from lr2ppo.data.samplers import Draw, EpochSampler, training_loader, whole_lists
from lr2ppo.distributed.processes import Processes, resolve_precision
from lr2ppo.distributed.signals import StopRequest
from lr2ppo.errors import UserError
from lr2ppo.evaluation.relevance import fit_calibration
from lr2ppo.evaluation.scoring import Evaluation, Scores, evaluate_pairs, score_clips, validation_ndcg
from lr2ppo.files import remove_partial_files, write_json
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.weights import Model, load_kind
from lr2ppo.ops.linear import use_fast_linear
from lr2ppo.runs.lookup import (
    FINISHED,
    INPUTS,
    TRAINED_ON,
    VALIDATED_ON,
    best_validation,
    read_trained_on,
    weights_fingerprint,
)
from lr2ppo.runs.records import Calibration, TrainedOn
from lr2ppo.runs.stages import STAGES
from lr2ppo.training.checkpoint import (
    Checkpoint,
    ProcessState,
    State,
    check_space,
    remove_checkpoints,
    write_checkpoint,
)
from lr2ppo.training.clock import Clock
from lr2ppo.training.inputs import (
    Inputs,
    check_encoders,
    check_selects,
    clip_warnings,
    open_inputs,
    resolve_model,
)
from lr2ppo.training.learner import Learner
from lr2ppo.training.log import RunLog, cut_metrics
from lr2ppo.training.progress import Progress
from lr2ppo.training.provenance import describe_machine, describe_program
from lr2ppo.training.run_folder import (
    CHECKPOINTS,
    LAST,
    check_resumable,
    check_same_inputs,
    check_same_sources,
    claim_run,
    make_folder,
    peak_memory_gib,
    resolve_sources,
    run_folder,
)
from lr2ppo.training.trained_on import clips_fingerprint, join_trained_on
from lr2ppo.training.writer import Writer

C = TypeVar("C", bound=RunConfig)
# What training takes of a GPU's memory: weights, moments, gradients and copies; activations at most, about.
BYTES_PER_WEIGHT, BYTES_OF_ACTIVATIONS = 22, 6 * 2**30
# Of one batch: on a device, they are read when they are needed.
Values = Mapping[str, Tensor | float]
# On a GPU, results are read after so many batches: each time, the GPU has nothing to do for a moment.
READ_EVERY = 20


@dataclass(frozen=True)
class Opened(Generic[C]):
    """All that a run reads, checked: its resolved config, the runs it starts from by config key, features and clips.

    `trained_on` are the clips that it and those runs are trained on.
    """

    config: C
    sources: Mapping[str, Path]
    store: FeatureStore
    inputs: Inputs
    trained_on: TrainedOn
    warnings: tuple[str, ...]


def open_all(
    config: C, processes: Processes, started: Path | None, read: Callable[..., Inputs] = open_inputs
) -> Opened[C]:
    """Open and check all that a run reads; of a run that has started, in the folder `started`, it must be the same.

    `read` takes the place of `open_inputs`, for several runs that read the same. Raises `UserError` on every process if
    a run that it starts from is missing, data or features cannot be used, or the run started with other settings or
    other data.
    """
    config, sources = resolve_sources(config, started)
    store = open_store(config.data)
    config, shape = resolve_model(config, sources, store)
    warning = check_encoders(sources.values(), store)
    if started is not None:
        check_resumable(started, config, store)
    reads: Need = "grades" if config.reads_grades else STAGES[config.stage].reads
    files = {key: (name, reads if key == "train" else "grades") for key, name in config.annotations.items()}
    inputs = read(config.data, files, store, shape, processes)
    check_selects(inputs.datasets[1], config.data.root / config.data.validation)
    found = {key: weights_fingerprint(run) for key, run in sources.items()}
    known = {key: fingerprint for key, fingerprint in found.items() if fingerprint is not None}
    inputs = replace(inputs, fingerprints=inputs.fingerprints | known)
    if started is not None:
        check_same_inputs(started, inputs.fingerprints)
    # Kept once and for all: what the sources were trained on may be unknown later.
    kept = None if started is None else read_trained_on(started)
    clips = [clip for dataset in (inputs.datasets[0], *inputs.datasets[2:]) for clip in dataset.clips]
    trained_on = kept or join_trained_on(clips, inputs.datasets[1].clips, sources.values(), config.data.root)
    return Opened(config, sources, store, inputs, trained_on, (warning,) if warning else ())


def exceeds(found: Scores, highest: Scores, standard_errors: float) -> bool:
    """Whether the mean gain of clips' NDCG over the highest mean so far exceeds so many of its standard errors.

    Shapes: found, highest: [clips]. With a negative number, the latest weights are taken that are not clearly worse:
    of many steps measured on few clips, the highest is higher than it should be (one standard error: Breiman et al.
    1984).
    """
    gain = found - highest
    error = float(gain.std(ddof=1)) / len(gain) ** 0.5 if len(gain) > 1 else 0.0
    return float(gain.mean()) > standard_errors * error


class TrainingRun(Generic[C]):
    """A training run: its resolved config, its folder, its clips, and the loop over its batches.

    `step` counts optimizer steps, or updates in stage 3. `sources` are the folders of the runs that it starts from, by
    config key, `fingerprints` those of all that it reads. Every process has a `TrainingRun`; only the main process
    writes.
    """

    def __init__(
        self,
        opened: Opened[C],
        folder: Path,
        processes: Processes,
        resumed: tuple[Checkpoint | None, tuple[str, ...]],
    ) -> None:
        """Store what `open` found; nothing is written before `training`."""
        self.config, self.stage, self.folder = opened.config, STAGES[opened.config.stage], folder
        self.processes, self.sources = processes, opened.sources
        self.clips, self.validation, *more = opened.inputs.datasets
        # In a batch, clips of `graded` are counted on from those of `clips`.
        self.graded = more[0] if more else None
        self._clips = self.clips if self.graded is None else self.clips.joined(self.graded)
        self._store, self.fingerprints = opened.store, opened.inputs.fingerprints
        self._trained_on = opened.trained_on
        self._warnings = clip_warnings(self._clips, self.validation, opened.trained_on.clips)
        self.checkpoint, self._notes = resumed
        # A copy: the checkpoint's own says how many processes wrote it.
        self.state = State() if self.checkpoint is None else replace(self.checkpoint.state)
        self.stored = [ProcessState()] if self.checkpoint is None else self.checkpoint.read_process_states()
        self._seen: list[dict[str, float]] = []
        self._unread: list[Values] = []
        self._calls = 0
        self._clock, self._writer = Clock(), Writer()
        self._stop = StopRequest(prints=processes.is_main)

    @classmethod
    def open(cls, config: C, processes: Processes, fresh: bool) -> Self:
        """Lock the run's name and check all its inputs, before anything is written.

        Raises `UserError` on every process if the name is taken, a run that it starts from is missing, data or features
        cannot be used, or a run would resume with other settings or other data.
        """
        folder = run_folder(config)
        checkpoint, notes = claim_run(folder, processes, fresh)
        opened = open_all(config, processes, None if checkpoint is None else folder)
        return cls(opened, folder, processes, (checkpoint, (*notes, *opened.warnings)))

    def read(self, draw: Draw, *models: Model) -> int:
        """Set up the loader for the batches of `draw`; return the number of batches of the whole run per process.

        If one of the `models` reads whole lists, every batch holds all labels of its clips.
        """
        self._keep_features(models)
        if any(model.reads_whole_lists for model in models):
            draw = whole_lists(draw, self._clips.clips)
        self._sampler = EpochSampler(
            draw,
            batch_size=self._clips_per_batch(),
            seed=self.config.seed,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
        )
        self._loader: Iterable[ClipBatch] = training_loader(self._clips, self._sampler, self.config.data.workers)
        return self.config.train.epochs * len(self._sampler)

    def _keep_features(self, models: Sequence[Model]) -> None:
        """Keep the features of the run's clips where its config wants them, if they fit beside its models."""
        started = time.monotonic()
        datasets = [self._clips, self.clips, self.validation, *([] if self.graded is None else [self.graded])]
        clips = dict.fromkeys(clip.id for dataset in datasets for clip in dataset.clips)
        weights = sum(weight.numel() for model in models for weight in model.parameters())
        in_bf16 = resolve_precision(self.config.compute.precision, self.processes.device) == "bf16"
        kept = keep_features(
            self.config.data.keep,
            self._store,
            list(clips),
            # What the models' first layers make of them.
            torch.bfloat16 if in_bf16 else torch.float32,
            self.processes,
            reserved=BYTES_PER_WEIGHT * weights + BYTES_OF_ACTIVATIONS,
        )
        for dataset in datasets:
            dataset.kept = kept
        if kept is None:
            self._notes = (*self._notes, "features: read from disk in each step")
            return
        place = "the GPU's memory" if kept.on_gpu else "memory"
        seconds = time.monotonic() - started
        self._notes = (*self._notes, f"features: {kept.gib:.2f} GiB kept in {place}, read in {seconds:.1f} s")

    @contextmanager
    def training(self, learners: Mapping[str, Learner[Any]], steps: int, headline: str) -> Iterator[None]:
        """Within the context, the run trains `steps` steps; at its end the run saves its last weights and finishes.

        The first of the `learners` is the run's model; their names prefix their logged values. Raises `UserError` if
        the disk has no room, or if a run that it starts from has other weights than when this one was opened.
        """
        self.learners, self.steps = learners, steps
        check_same_sources(self.sources, self.fingerprints)
        self._start(headline)
        progress = Progress(
            self.folder, self.stage.selects, self.state.best, steps, self.step, is_main=self.processes.is_main
        )
        with progress as self._progress, self._stop:
            if self.checkpoint is not None:
                # Last, because building models and reading weights may have drawn random numbers.
                self.checkpoint.restore_random(self.processes)
            try:
                yield
            finally:
                self._writer.wait()
        self._finish()

    def fitting(self) -> AbstractContextManager[None]:
        """Within the context, a checkpoint whose stored values do not fit the run is refused with a `UserError`."""
        return nullcontext() if self.checkpoint is None else self.checkpoint.fitting()

    @property
    def step(self) -> int:
        return self.state.step

    @property
    def is_new(self) -> bool:
        """Whether the run starts instead of resuming."""
        return self.checkpoint is None

    def batches(self) -> Iterator[ClipBatch]:
        """Yield this process's batches, on its device, from the current step to the last."""
        state = self.state
        while state.epoch < self.config.train.epochs:
            self._sampler.set_epoch(state.epoch, state.requests)
            batches = iter(self._loader)
            while (batch := self._next(batches)) is not None:
                if self.step == self.steps:
                    return
                state.requests += self._sampler.global_batch
                yield batch
            state.epoch, state.requests = state.epoch + 1, 0

    def _next(self, batches: Iterator[ClipBatch]) -> ClipBatch | None:
        with self._clock.spending("reading"):
            batch = next(batches, None)
            return None if batch is None else batch.to(self.processes.device)

    def observe(self, values: Values) -> None:
        """Record values of a batch; their means are logged with the next evaluation, without those that are NaN."""
        self._unread.append(values)

    def advance(self, shown: str) -> None:
        """Count a step, and show one of the observed values beside the progress bar."""
        self.state.step += 1
        if self.processes.reads_at_once or len(self._unread) >= READ_EVERY or self.evaluates:
            self._settle()
            self._clock.lap(self.step)
            self._progress.advance(self.step, {shown: self._seen[-1][shown]})

    @property
    def evaluates(self) -> bool:
        """Whether to evaluate after this step: every `train.evaluate_every` steps, and after the last."""
        return self.step % self.config.train.evaluate_every == 0 or self.step == self.steps

    def record(self, evaluation: Evaluation, standard_errors: float = 0.0) -> None:
        """Log an evaluation with the means of the observed values since the last one; save the best weights.

        A ranker's weights replace the best if their gain exceeds so many of its standard errors: see `exceeds`.
        """
        self._store.check_unchanged()
        state, metric = self.state, evaluation.metrics[self.stage.selects]
        best_step_before = None if state.best is None else state.best_step
        improved = state.best is None or metric > state.best
        if standard_errors:
            improved = state.best is None or exceeds(evaluation.ndcg, np.array(state.highest), standard_errors)
            if state.best is None or evaluation.ndcg.mean() > np.mean(state.highest):
                state.highest = evaluation.ndcg.tolist()
        if improved:
            state.best, state.best_step = metric, self.step
            with self._clock.spending("writing"):
                self._model.save(self.folder / "best", self._writer)
        means = self._observed_means()
        if self.processes.is_main:
            seconds, left = time.monotonic() - self._started, self._progress.seconds_left
            self._run_log.record(self.step, seconds, means, evaluation, best_step_before, improved, left)
        self._progress.evaluated(metric, state.best)

    def record_ndcg(self, standard_errors: float) -> None:
        """Evaluate the run's model, a ranker, on the validation clips, and `record` the result."""
        with self._clock.spending("evaluating"), self._model.unsharded() as model:
            found = validation_ndcg(model, self.validation, self.processes, self.config.train.clips_per_batch)
            self.record(found, standard_errors)

    def record_pairs(self, requests: Sequence[ClipRequest]) -> None:
        """Evaluate the run's model, a reward model, on annotated pairs of the validation clips; `record` the result."""
        with self._clock.spending("evaluating"), self._model.unsharded() as model:
            at_once = self.config.train.clips_per_batch
            self.record(evaluate_pairs(model, self.validation, requests, self.processes, at_once))

    def save_checkpoint(self, stored: Callable[[], ProcessState] = ProcessState, substep: int = 0) -> None:
        """Write a checkpoint if one is due; call it after each batch is fully processed.

        `stored` returns what the stage keeps between steps; `substep` numbers the batches between two steps. Exits with
        128 + the signal's number if the run was asked to stop.
        """
        self._calls += 1
        by_steps = self._is_due_by_steps(substep)
        if not (self.processes.reads_at_once or by_steps or self._calls % READ_EVERY == 0):
            return
        due = self.processes.is_main and (by_steps or self._is_due_by_minutes())
        # All processes must agree: a signal may reach only one of them.
        asked = self.processes.max(2 * self._stop.signal + due)
        if not asked:
            return
        self._store.check_unchanged()
        self._settle()
        own = stored()
        own.seen = self._seen
        self.state.seconds = time.monotonic() - self._started
        if self.processes.is_main:
            self.state.metrics_bytes = self._run_log.sync()
        self.state.counters = {name: learner.counters() for name, learner in self.learners.items()}
        folder, keep = self.folder / CHECKPOINTS, self.config.safety.keep
        with self._clock.spending("writing"):
            write_checkpoint(folder, keep, self.state, own, self.learners, self.processes, self._writer, substep)
            if asked // 2:
                self._writer.wait()
                # The launcher stops the others when the first process ends.
                self.processes.barrier()
        self._written = time.monotonic()
        if asked // 2:
            self._log(f"stopped at step {self.step} of {self.steps}; the same command resumes from there")
            raise SystemExit(128 + asked // 2)

    @property
    def _model(self) -> Learner[Any]:
        return next(iter(self.learners.values()))

    def _log(self, text: str) -> None:
        if self.processes.is_main:
            self._run_log.log(text)

    def _start(self, headline: str) -> None:
        """Create the run's folder, or restore the state of the checkpoint that it resumes from."""
        checkpoint, processes = self.checkpoint, self.processes
        if processes.is_main:
            check_space(self.folder, self.learners)
            if checkpoint is None:
                make_folder(self.folder, self.config)
            else:
                # No other process writes here while this one holds the run's lock.
                remove_partial_files(self.folder)
                with checkpoint.fitting():
                    cut_metrics(self.folder, checkpoint.state.metrics_bytes)
                    if checkpoint.state.highest and len(checkpoint.state.highest) != len(self.validation):
                        raise ValueError(
                            f"highest has {len(checkpoint.state.highest)} clips, wanted {len(self.validation)}"
                        )
            # Also in a run that resumes: its encoders may have moved.
            write_features_file(self.folder, self._store.encoding, self._store.paths)
            write_json(self.folder / INPUTS, self.fingerprints)
            write_json(self.folder / TRAINED_ON, self._trained_on.model_dump())
            last_step = None if checkpoint is None else checkpoint.state.step
            self._run_log = RunLog(self.folder, self.config, self.steps, last_step)
        for note in self._notes:
            self._log(note)
        if checkpoint is not None:
            self._log(f"resuming from {checkpoint.folder}")
            checkpoint.restore(self.learners)
            self._seen = self._restore_seen()
        self.state.global_batch, self.state.processes = self._sampler.global_batch, processes.world_size
        now = time.monotonic()
        # The clock of the day may jump.
        self._started, self._written = now - self.state.seconds, now
        self._log("; warning: ".join([headline, *self._warnings]))

    def _finish(self) -> None:
        """Save the last weights, write finished.json and remove the checkpoints."""
        for number, (name, learner) in enumerate(self.learners.items()):
            last = self.folder / LAST
            learner.save(last / name if number else last)
        calibration = self._calibrate()
        if not self.processes.is_main:
            return
        state, seconds = self.state, round(time.monotonic() - self._started, 1)
        facts = {
            "steps": self.step,
            "best_metric": state.best,
            "best_step": state.best_step,
            "seconds": seconds,
            "seconds_per_step": self._clock.seconds_per_step,
            "spent": {activity: round(spent, 1) for activity, spent in self._clock.spent.items()},
            "peak_memory_gib": round(peak_memory_gib(), 2),
            "warnings": self._warnings,
            VALIDATED_ON: clips_fingerprint(self.validation.clips),
            "finished": time.time(),
            **describe_program(),
            "machine": describe_machine(self.processes),
            "calibration": None if calibration is None else calibration.model_dump(),
        }
        write_json(self.folder / FINISHED, facts)
        self._run_log.finish(self.step, best_validation(self.folder))
        best = f"best weights (step {state.best_step}) are in {self.folder / 'best'}"
        self._log(f"finished in {seconds:.0f} s; {best}")
        remove_checkpoints(self.folder / CHECKPOINTS)

    def _calibrate(self) -> Calibration | None:
        """Fit the probabilities of a ranker's best weights on the validation clips; every process must call it.

        None for a reward model, if it cannot be fitted, and on other processes than the main one.
        """
        if self.stage.model != "RelevanceRanker":
            return None
        # The main process may still write them.
        self.processes.barrier()
        # In full precision, as labels are ranked: not from kept features, which may be in bfloat16.
        validation = self.validation.without([])
        ranker = use_fast_linear(load_kind(self.folder / "best", RelevanceRanker)).to(self.processes.device)
        scores = score_clips(ranker, validation, self.processes, self.config.train.clips_per_batch)
        if not self.processes.is_main:
            return None
        calibration = fit_calibration(scores, [graded(clip) for clip in validation.clips])
        if calibration is None:
            self._log("labels get no probabilities: on the validation clips, relevant ones do not score higher")
        return calibration

    def _settle(self) -> None:
        """Wait for the steps made: check them, and read the observed values."""
        for learner in self.learners.values():
            learner.settle()
        unread, self._unread = self._unread, []
        waiting = [value for values in unread for value in values.values() if isinstance(value, Tensor)]
        read = iter(torch.stack([value.detach().double() for value in waiting]).tolist() if waiting else [])
        for values in unread:
            self._seen.append(
                {name: next(read) if isinstance(value, Tensor) else value for name, value in values.items()}
            )

    def _observed_means(self) -> dict[str, float]:
        """The means of observed values over batches and processes, with learning rates and gradient norms."""
        self._settle()
        if not self._seen:
            return {}
        # A batch may lack a value, on all processes alike.
        names = dict.fromkeys(name for each in self._seen for name in each)
        seen = {name: [each[name] for each in self._seen if not math.isnan(each.get(name, math.nan))] for name in names}
        means = {name: sum(values) / len(values) for name, values in seen.items() if values}
        self._seen.clear()
        means = self.processes.mean(means)
        for name, learner in self.learners.items():
            prefix = f"{name}_" if name else ""
            means[f"{prefix}learning_rate"] = learner.learning_rate
            means[f"{prefix}gradient_norm"] = learner.gradient_norm
            means |= {f"{prefix}skipped_steps": float(learner.skipped)} if learner.skipped else {}
        return means

    def _is_due_by_steps(self, substep: int) -> bool:
        steps = self.config.safety.checkpoint_steps
        return steps is not None and substep == 0 and self.step > 0 and self.step % steps == 0

    def _is_due_by_minutes(self) -> bool:
        minutes = self.config.safety.checkpoint_minutes
        return minutes is not None and time.monotonic() - self._written > 60 * minutes

    def _restore_seen(self) -> list[dict[str, float]]:
        if len(self.stored) == self.processes.world_size:
            return list(self.stored[self.processes.rank].seen)
        # The run had another number of processes: only the mean over them matters.
        rows = zip(*(own.seen for own in self.stored), strict=True)
        return [{name: sum(each[name] for each in row) / len(row) for name in row[0]} for row in rows]

    def _clips_per_batch(self) -> int:
        """The clips per batch of this process: the config's, or, in a run that resumes, a share of its global batch.

        Raises `UserError` if the processes cannot share it equally.
        """
        if self.checkpoint is None:
            return self.config.train.clips_per_batch
        state, processes = self.checkpoint.state, self.processes
        if state.global_batch % processes.world_size:
            raise UserError(
                f"{self.checkpoint.folder}: found batches of {state.global_batch} clips over {state.processes} "
                f"processes, which {processes.world_size} processes cannot share; resume with a number that "
                "divides it, such as NPROC=1"
            )
        return state.global_batch // processes.world_size
