"""Runs that are killed or stopped at random moments."""

import os
import random
import re
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lr2ppo.runs.stages import STAGES
from lr2ppo.training.checkpoint import TEMPORARY, newest_checkpoint
from tests.reliability.faults_world import TRACEBACK, Ended, Job, Outcome, Workshop, difference

Tried = Iterator[tuple[str, Outcome]]
# Long enough to be hit several times.
EPOCHS = {"pointwise": 40, "finetune": 40, "reward": 40, "distill": 20, "ppo": 9}
# Every second step: a good part of the time goes into writing them.
OFTEN = "safety.checkpoint_steps=2"
SECONDS_AT_ONCE, SECONDS_TO_STOP, SECONDS_TO_VANISH, SECONDS_OF_TRAINING = 5, 30, 60, 7
HALF_WRITTEN = "SIGKILL within the writing of a checkpoint"


@dataclass(frozen=True)
class Series:
    """Runs of one stage with one number of processes, compared with an uninterrupted run."""

    workshop: Workshop
    stage: str
    processes: int

    def start(
        self, name: str, *more: str, environment: Mapping[str, str] | None = None, before: Sequence[str] = ()
    ) -> Job:
        """Start a run, with further environment variables, and with a command `before` the script's that runs it."""
        settings = ["train.clips_per_batch=8", f"train.epochs={EPOCHS[self.stage]}"]
        sources = [f"{key}=whole-1" for key in STAGES[self.stage].sources]
        return self.workshop.start(
            self.stage,
            name,
            *settings,
            *sources,
            *more,
            processes=self.processes,
            before=before,
            **({"PYTHONUNBUFFERED": "1"} | dict(environment or {})),
        )

    def folder(self, name: str) -> Path:
        return self.workshop.folder(self.stage, name)

    def make_whole(self) -> Path:
        """Return the folder of the uninterrupted run; train it on first use."""
        folder = self.folder(f"whole-{self.processes}")
        if not folder.exists():
            self.make_earlier()
            ended = self.start(folder.name).end()
            if ended.code != 0:
                raise RuntimeError(f"the uninterrupted run ended with {ended.code}:\n{ended.printed}")
        return folder

    def make_earlier(self) -> None:
        """Train the runs that this stage's runs start from."""
        for usual, *_ in STAGES[self.stage].sources.values():
            Series(self.workshop, usual, 1).make_whole()

    def newest(self, name: str) -> str:
        """The newest complete checkpoint of a run; empty if it has none."""
        checkpoint, _ = newest_checkpoint(self.folder(name) / "checkpoints")
        return checkpoint.folder.name if checkpoint else ""

    def trains(self, job: Job, seconds: float = 120) -> bool:
        """Wait until a run makes steps; return False if it ended before."""
        return job.wait_for(lambda: bool(re.search(r"(?m)^stage \d:", job.printed)), seconds)

    def wait_for_checkpoints(self, job: Job, name: str, number: int = 1, logs: Path | None = None) -> None:
        """Wait until a run has `number` checkpoints."""
        place = (logs or self.workshop.logs) / self.stage / name / "checkpoints"
        job.wait_for(lambda: len(list(place.glob("step-*"))) >= number, 120)

    def stop(self, name: str, logs: Path | None = None) -> Ended:
        """Start a run, and stop it once it has two checkpoints."""
        logs = logs or self.workshop.logs
        job = self.start(name, OFTEN, f"logs={logs}")
        self.wait_for_checkpoints(job, name, number=2, logs=logs)
        os.kill(job.script.pid, signal.SIGTERM)
        return job.end()

    def finish(self, name: str, *more: str, message: str = "") -> Outcome:
        """Run to the end and compare with the uninterrupted run."""
        whole = self.make_whole()
        ended = self.start(name, *more).end()
        why = _screen_fault(ended) or difference(whole, self.folder(name))
        if not why and message not in ended.printed:
            why = f"did not print {message!r}"
        return Outcome(
            "lost" if why else "continued", ended.seconds, why and f"{why}; it printed: {ended.printed[-600:]}"
        )


@dataclass
class Victim:
    """A run that gets signals again and again until it is finished."""

    series: Series
    dice: random.Random
    number: int = 0
    expected: str = field(default="", init=False)

    @property
    def name(self) -> str:
        return f"hit-{self.series.processes}-{self.number}"

    def hit(self) -> tuple[str, Outcome] | None:
        """Start or resume, and send a signal at a random moment; None if it finished before."""
        workers = f"data.workers={self.dice.choice([0, 0, 1])}"
        before, job = self.series.newest(self.name), self.series.start(self.name, OFTEN, workers)
        trained = self._wait(job)
        what, pid, sent = self._choose(job)
        if not job.running or (self.series.folder(self.name) / "finished.json").exists():
            job.end()
            return None
        started = time.monotonic()
        os.kill(pid, sent)
        ended = job.end(SECONDS_TO_VANISH)
        seconds = time.monotonic() - started
        left = job.left_after(SECONDS_TO_VANISH - seconds)
        if ended.code == 0:
            return None
        if sent == signal.SIGKILL and list((self.series.folder(self.name) / "checkpoints").glob(f"{TEMPORARY}-*")):
            what = HALF_WRITTEN
        why = _kill_fault(ended, sent, seconds, left)
        if not why and trained and before and f"{before}\n" not in ended.printed:
            why = f"did not resume from {before}"
        if not why and self.series.newest(self.name) < before:
            why = f"{before} is gone"
        run = f"{what}, {self.series.stage}, {self.series.processes} processes"
        details = f"{why} ({run}); it printed: {ended.printed[-900:]}"
        return what, Outcome("lost" if why else "continued", seconds, why and details)

    def _wait(self, job: Job) -> bool:
        """Wait for the moment: one in six is during startup, before the first step."""
        if self.dice.random() < 1 / 6:
            until = time.monotonic() + self.dice.uniform(0, 8)
            job.wait_for(lambda: time.monotonic() > until, 10)
            return False
        if self.series.trains(job):
            until = time.monotonic() + self.dice.uniform(0, SECONDS_OF_TRAINING)
            job.wait_for(lambda: time.monotonic() > until, SECONDS_OF_TRAINING + 1)
        return True

    def _choose(self, job: Job) -> tuple[str, int, signal.Signals]:
        """Choose what is done, to which process, and the signal; half of the SIGKILLs wait for a checkpoint write."""
        kinds = ["kill", "kill", "kill", "SIGTERM", "SIGINT", "SIGUSR1"]
        kind = self.dice.choice([*kinds, "launcher"] if self.series.processes > 1 else kinds)
        if kind.startswith("SIG"):
            return f"{kind} to the script", job.script.pid, signal.Signals[kind]
        if self.dice.random() < 0.5:
            place = self.series.folder(self.name) / "checkpoints"
            job.wait_for(lambda: bool(list(place.glob(f"{TEMPORARY}-*"))), 5, pause=0.0005)
        if kind == "launcher":
            return "SIGKILL of the launcher", job.script.pid, signal.SIGKILL
        return "SIGKILL of a training process", self.dice.choice(job.training()), signal.SIGKILL


def try_kills(workshop: Workshop, kills: int, seed: int) -> Tried:
    """Send signals to runs of every stage at random moments; then finish and compare with uninterrupted runs."""
    dice = random.Random(seed)  # noqa: S311 (no secret is drawn)
    every = [Series(workshop, stage, processes) for processes in (1, 2) for stage in STAGES]
    for place, series in enumerate(every):
        series.make_whole()
        victim, hits = Victim(series, dice), 0
        while hits < kills // len(every) + (place < kills % len(every)):
            if found := victim.hit():
                hits += 1
                yield found
            else:
                yield _compared(victim)
                victim = Victim(series, dice, victim.number + 1)
        yield _compared(victim)


def try_restarts(workshop: Workshop) -> Tried:
    """Kill one of two processes of a run that the launcher may restart."""
    for stage in STAGES:
        series = Series(workshop, stage, 2)
        whole, job = series.make_whole(), series.start("restarted", OFTEN, "--max-restarts", "2")
        series.wait_for_checkpoints(job, "restarted")
        os.kill(job.training()[-1], signal.SIGKILL)
        ended = job.end()
        why = _screen_fault(ended) or difference(whole, series.folder("restarted"))
        if ended.code != 0 or "resuming from" not in ended.printed:
            why = f"ended with {ended.code}, {why}; it printed: {ended.printed[-900:]}"
        yield (
            "SIGKILL of one of two, with --max-restarts 2",
            Outcome("lost" if why else "continued", ended.seconds, why),
        )


def try_second_signal(workshop: Workshop) -> Tried:
    """Send a second signal: during the write of a large checkpoint, and while one of two processes hangs."""
    series = Series(workshop, "pointwise", 1)
    wide = ["model.width=768", "train.clips_per_batch=48", "safety.checkpoint_steps=1"]
    outcome = _ask_twice(series, series.start("wide", *wide), "wide")
    if not outcome.why and not series.newest("wide"):
        outcome = Outcome("lost", outcome.seconds, "no checkpoint is whole")
    yield "a second SIGTERM within the writing of a checkpoint", outcome
    series = Series(workshop, "pointwise", 2)
    outcome = _ask_twice(series, series.start("hung", OFTEN), "hung", hang=True)
    again = series.finish("hung", message="resuming from")
    yield "a second SIGTERM where a process hangs", outcome if outcome.why else again


def _ask_twice(series: Series, job: Job, name: str, hang: bool = False) -> Outcome:
    """Stop a run once it has a checkpoint, and signal again two seconds later."""
    series.wait_for_checkpoints(job, name)
    if hang:
        os.kill(job.training()[-1], signal.SIGSTOP)
    os.kill(job.script.pid, signal.SIGTERM)
    time.sleep(2)
    asked = time.monotonic()
    if job.running:
        os.kill(job.script.pid, signal.SIGTERM)
    ended = job.end(SECONDS_TO_VANISH)
    seconds = time.monotonic() - asked
    why = _kill_fault(ended, signal.SIGTERM, seconds, job.left_after(10))
    if seconds > SECONDS_AT_ONCE:
        why = f"ended {seconds:.0f} s after it"
    return Outcome("lost" if why else "continued", seconds, why and f"{why}; it printed: {ended.printed[-600:]}")


def try_one_name(workshop: Workshop) -> Tried:
    """Start a run twice at the same time; then kill the first and start it again."""
    series = Series(workshop, "pointwise", 1)
    # Slow enough to be still running when the second has been refused.
    first = series.start("shared", "safety.checkpoint_steps=1")
    series.wait_for_checkpoints(first, "shared")
    second = series.start("shared").end()
    owner = f"(process {first.script.pid} on {socket.gethostname()})"
    why = _screen_fault(second)
    if second.code != 2 or owner not in second.printed or not first.running:
        why = f"ended with {second.code}, wanted 2 and {owner}; it printed: {second.printed[-600:]}"
    yield "two runs of one name at once: the second", Outcome("lost" if why else "refused", second.seconds, why)
    os.kill(first.script.pid, signal.SIGKILL)
    first.end()
    yield "the first killed, the same command again", series.finish("shared", message="resuming from")


def try_damage(workshop: Workshop) -> Tried:
    """Damage the newest checkpoint of a stopped run in several ways."""
    series = Series(workshop, "pointwise", 1)
    for number, what in enumerate(("a byte flipped", "a file cut short", "state.json emptied", "no checksums")):
        name = f"damaged-{number}"
        series.stop(name)
        damage(series.folder(name) / "checkpoints" / series.newest(name), what)
        yield f"newest checkpoint damaged: {what}", series.finish(name, message=": is damaged")


def damage(checkpoint: Path, what: str) -> None:
    """Damage a checkpoint on disk."""
    weights, moments = checkpoint / "-weights.safetensors", checkpoint / "-exp_avg.safetensors"
    if what == "a byte flipped":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif what == "a file cut short":
        os.truncate(moments, moments.stat().st_size // 2)
    elif what == "state.json emptied":
        os.truncate(checkpoint / "state.json", 0)
    else:
        (checkpoint / "checksums.json").unlink()


def _compared(victim: Victim) -> tuple[str, Outcome]:
    series = victim.series
    folder = series.folder(victim.name)
    if (folder / "finished.json").exists():
        why = difference(series.make_whole(), folder)
        outcome = Outcome("lost" if why else "continued", why=why)
    else:
        outcome = series.finish(victim.name)
    processes = f"{series.processes} process{'es' * (series.processes > 1)}"
    return f"bytes and rows at the end: {series.stage}, {processes}", outcome


def _kill_fault(ended: Ended, sent: signal.Signals, seconds: float, left: list[int]) -> str:
    """The broken promise about being killed; empty if there is none."""
    # A shell reports a process killed by a signal with the same codes.
    code = 128 - ended.code if ended.code < 0 else ended.code
    if left:
        return f"{len(left)} processes were left a minute later"
    if sent != signal.SIGKILL and code != 128 + sent:
        return f"ended with exit code {code}, wanted {128 + sent}"
    if sent != signal.SIGKILL and seconds > SECONDS_TO_STOP:
        return f"took {seconds:.0f} s to stop"
    return _screen_fault(ended)


def _screen_fault(ended: Ended) -> str:
    return "a traceback reached the screen" if TRACEBACK in ended.printed else ""
