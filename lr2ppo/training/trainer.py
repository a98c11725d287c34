"""A training run in progress: what it learns from next, what it has seen, its evaluations and its checkpoints."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from lr2ppo.data.dataset import ClipBatch, ClipDataset
from lr2ppo.data.samplers import Draw, EpochSampler, training_loader
from lr2ppo.distributed.processes import Processes
from lr2ppo.distributed.signals import StopRequest
from lr2ppo.errors import UserError
from lr2ppo.evaluation.scoring import Evaluation
from lr2ppo.training.checkpoint import Own, State, check_space, remove_checkpoints, write_checkpoint
from lr2ppo.training.learner import Learner
from lr2ppo.training.run_folder import CHECKPOINTS, Run, Save, Start

Values = dict[str, float]


class Session:
    """Runs a stage's loop so that it can be stopped at any batch and go on as if it had not been.

    `step` counts what the stage calls a step: an optimizer step, or in stage 3 an update. `owns` is what each process
    had of its own in the checkpoint that the run goes on from.
    """

    def __init__(
        self,
        run: Run,
        start: Start,
        sampler: EpochSampler,
        loader: Iterable[ClipBatch],
        learners: Mapping[str, Learner[Any]],
        steps: int,
        processes: Processes,
    ) -> None:
        """`learners` by the name that tells apart what is logged of them, which may be empty."""
        self.run, self.learners, self.steps = run, learners, steps
        self._settings, self._epochs = start.config.safety, start.config.train.epochs
        self._sampler, self._loader, self._processes = sampler, loader, processes
        self._checkpoint = start.checkpoint
        self.state, self.owns = State(), [Own()]
        if self._checkpoint is not None:
            self.state, self.owns = self._checkpoint.state, self._checkpoint.read_own()
            self._checkpoint.restore(learners)
        self.state.global_batch, self.state.processes = sampler.global_batch, processes.world_size
        self.seen = self._restore_seen()
        self._stop = StopRequest(talks=processes.is_main)
        self._written = time.monotonic()
        if processes.is_main:
            check_space(run.folder, learners)

    @property
    def step(self) -> int:
        return self.state.step

    def __enter__(self) -> Self:
        self._exits = ExitStack()
        self._progress = self._exits.enter_context(self.run.progress(self.steps, self.step))
        self._exits.enter_context(self._stop)
        if self._checkpoint is not None:
            # Last, for making models and reading weights may have drawn from it.
            self._checkpoint.restore_random(self._processes)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._exits.close()

    def batches(self) -> Iterator[ClipBatch]:
        """This process's batches from where the run is to its last step."""
        while self.state.epoch < self._epochs:
            self._sampler.set_epoch(self.state.epoch, self.state.requests)
            for batch in self._loader:
                if self.step == self.steps:
                    return
                self.state.requests += self._sampler.global_batch
                yield batch
            self.state.epoch, self.state.requests = self.state.epoch + 1, 0

    def advance(self, shown: Values) -> None:
        """Count a step that was made, and show some of its values beside the progress bar."""
        self.state.step += 1
        self._progress.advance(shown)

    def evaluates(self, every: int) -> bool:
        """Whether an evaluation follows the step just made: every so many, and after the last."""
        return self.step % every == 0 or self.step == self.steps

    def record(self, evaluation: Evaluation, save: Save) -> None:
        """Log an evaluation with the means of what was `seen` since the last one; keep the best weights."""
        averages: Values = {}
        if self.seen:
            averages = {name: sum(each[name] for each in self.seen) / len(self.seen) for name in self.seen[0]}
            averages = self._processes.mean(averages)
            for name, learner in self.learners.items():
                prefix = f"{name}_" if name else ""
                averages[f"{prefix}learning_rate"] = learner.learning_rate
                averages[f"{prefix}gradient_norm"] = learner.gradient_norm
                averages |= {f"{prefix}skipped_steps": float(learner.skipped)} if learner.skipped else {}
        self.run.record(self.step, self.steps, averages, evaluation, save, self._progress.seconds_left)
        self._progress.evaluated(evaluation.metrics[self.run.select], self.run.best)
        self.seen.clear()

    def checkpoint(self, stored: Callable[[], Own] = Own, substep: int = 0) -> None:
        """Write a checkpoint where one is due; called after each batch, when nothing of it is left to be done.

        `stored` gives what the stage itself keeps between steps, `substep` tells batches between two steps apart. Ends
        the process with 128 + the signal's number where the run was asked to stop.
        """
        due = self._is_due(substep) if self._processes.is_main else False
        # All processes have to agree; a signal may have reached one of them alone.
        asked = self._processes.most(2 * self._stop.signal + due)
        if not asked:
            return
        own = stored()
        own.seen = self.seen
        self.run.note_in(self.state)
        self.state.counters = {name: learner.counters() for name, learner in self.learners.items()}
        folder = self.run.folder / CHECKPOINTS
        write_checkpoint(folder, self._settings.keep, self.state, own, self.learners, self._processes, substep)
        self._written = time.monotonic()
        if asked // 2:
            self.run.say(f"stopped at step {self.step} of {self.steps}; the same command goes on from there")
            raise SystemExit(128 + asked // 2)

    def finish(self, models: Mapping[str, Save]) -> None:
        """Save the last weights and mark the run finished, which needs no checkpoints any more."""
        self.run.finish(self.step, models)
        if self._processes.is_main:
            remove_checkpoints(self.run.folder / CHECKPOINTS)

    def _is_due(self, substep: int) -> bool:
        steps, minutes = self._settings.checkpoint_steps, self._settings.checkpoint_minutes
        by_steps = steps is not None and substep == 0 and self.step > 0 and self.step % steps == 0
        return by_steps or (minutes is not None and time.monotonic() - self._written > 60 * minutes)

    def _restore_seen(self) -> list[Values]:
        if len(self.owns) == self._processes.world_size:
            return list(self.owns[self._processes.rank].seen)
        # Of another number of processes: what counts is the mean over them.
        rows = zip(*(own.seen for own in self.owns), strict=True)
        return [{name: sum(each[name] for each in row) / len(row) for name in row[0]} for row in rows]


def open_batches(
    start: Start, clips: ClipDataset, draw: Draw, processes: Processes
) -> tuple[EpochSampler, Iterable[ClipBatch]]:
    """What a stage learns from: the sampler of what `draw` draws, for this process, and what reads its batches."""
    sampler = EpochSampler(
        draw,
        batch_size=_share_of_batch(start, processes),
        seed=start.config.seed,
        rank=processes.rank,
        world_size=processes.world_size,
    )
    return sampler, training_loader(clips, sampler, start.config.data.workers)


def _share_of_batch(start: Start, processes: Processes) -> int:
    """Clips of this process's batches: as the config says, but a run that goes on keeps the batch of all processes.

    Raises `UserError` where that cannot be dealt out.
    """
    configured: int = start.config.train.clips_per_batch
    if start.checkpoint is None:
        return configured
    state = start.checkpoint.state
    if state.global_batch % processes.world_size:
        raise UserError(
            f"{start.checkpoint.folder}: found batches of {state.global_batch} clips over {state.processes} processes, "
            f"which {processes.world_size} processes cannot share; go on with a number that divides it, such as NPROC=1"
        )
    return state.global_batch // processes.world_size
