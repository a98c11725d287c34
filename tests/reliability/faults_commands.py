"""Commands that write other things than runs, killed at random moments; then the same command again."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py

from tests.reliability.faults_kills import Series, Tried
from tests.reliability.faults_world import TRACEBACK, Ended, Outcome, Workshop

SIZES = "--source 24 --target 24 --validation 6 --test 8 --pretraining 200"
ENCODERS = "--text pretrained/roberta --image pretrained/vit"
# 300 steps: with fewer, the encoders may not learn, which is refused.
PRETRAIN = "pretrain --data data/small --steps 300 --batch 32 --device cpu --out pretrained"


@dataclass(frozen=True)
class Work:
    """A command, what it writes (a file or a folder), and how its content is read to be compared."""

    name: str
    words: str
    out: str
    read: Callable[[Path], Any]
    # Of a command that was killed at its very end: the same command then finds its result.
    exists: str = ""
    kills: int = 3


def try_commands(workshop: Workshop, seed: int) -> Tried:
    """Kill the commands at random moments."""
    dice = random.Random(seed)  # noqa: S311 (no secret is drawn)
    Series(workshop, "pointwise", 1).make_whole()
    for words in (f"mini data/small --seed 3 {SIZES}", "mini data/table --table 400"):
        ended = _run(workshop, words)
        if ended.code != 0:
            raise RuntimeError(f"lr2ppo {words} ended with {ended.code}:\n{ended.printed}")
    for work in WORKS:
        out = workshop.root / work.out
        whole = _run(workshop, work.words)
        if whole.code != 0:
            raise RuntimeError(f"lr2ppo {work.words} ended with {whole.code}:\n{whole.printed}")
        content = work.read(out)
        for _ in range(work.kills):
            sent = dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
            yield (
                f"{sent.name} within {work.name}",
                _killed(workshop, work, content, sent, whole.seconds * dice.random()),
            )


def _killed(workshop: Workshop, work: Work, content: Any, sent: signal.Signals, after: float) -> Outcome:
    """Start with nothing written, send a signal, and run the same command again."""
    out = workshop.root / work.out
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    job = workshop.launch(["sh", "-c", f'exec "$PYTHON" -m lr2ppo {work.words}'])
    until = time.monotonic() + after
    job.wait_for(lambda: time.monotonic() > until, after + 1)
    if job.running:
        os.kill(job.script.pid, sent)
    killed = job.end()
    again = _run(workshop, work.words)
    fine = again.code == 0 or (again.code == 2 and bool(work.exists) and work.exists in again.printed)
    why = "" if fine else f"the same command ended with {again.code}"
    if TRACEBACK in killed.printed + again.printed:
        why = "a traceback reached the screen"
    if not why and work.read(out) != content:
        why = "the result differs from that of an uninterrupted command"
    printed = f"; it printed: {killed.printed[-900:]} {again.printed[-900:]}"
    return Outcome("lost" if why else "continued", again.seconds, why and why + printed)


def _run(workshop: Workshop, words: str) -> Ended:
    return workshop.launch(["sh", "-c", f'exec "$PYTHON" -m lr2ppo {words}']).end()


def _files(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def _tensors(out: Path) -> dict[str, bytes]:
    return {name: content for name, content in _files(out).items() if name.endswith(".safetensors")}


def _features(path: Path) -> dict[str, bytes]:
    """All arrays of a feature file: the order in which they are stored may differ."""
    found = {}
    with h5py.File(path) as file:

        def add(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                found[name] = item[()].tobytes()

        file.visititems(add)
    return found


def _results(path: Path) -> bytes:
    return path.read_bytes()


WORKS = (
    Work(
        "conversion", "convert data/table/table.csv --out data/converted", "data/converted", _files, "exists and is not"
    ),
    Work("pretraining", PRETRAIN, "pretrained", _tensors, kills=1),
    Work("extraction", f"extract --data data/small {ENCODERS} --device cpu", "data/small/clean_feat.h5", _features),
    Work(
        "evaluation",
        "evaluate --config configs/mini/evaluate.yaml name=pointwise/whole-1 device=cpu bootstrap_samples=100",
        "logs/pointwise/whole-1/results.json",
        _results,
    ),
)
