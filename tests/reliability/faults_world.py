"""The environment of fault tests: a copy of the project, a tiny world of random features, and a user's commands."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lr2ppo.data import Clip, FeatureWriter, annotations, write_clips
from lr2ppo.runs.stages import STAGES

REPOSITORY = Path(__file__).resolve().parents[2]
WIDTH, TOKENS, FRAMES, LABELS = 16, 4, 3, 6
TRACEBACK = "Traceback (most recent call last)"
# This variable marks the processes of one command, even if their parents have ended.
MARK = "LR2PPO_FAULTS_COMMAND"
LONGEST = 300.0

Result = Literal["continued", "refused", "lost", "not possible here"]


@dataclass(frozen=True)
class Outcome:
    """The result of one trial, its duration, and the broken promise if there is one."""

    result: Result
    seconds: float = 0.0
    why: str = ""


@dataclass(frozen=True)
class Ended:
    """A command that ended: its exit code (or minus the signal that killed it), its output, and its seconds."""

    code: int
    printed: str
    seconds: float


class Job:
    """A running command, with all processes that it starts."""

    def __init__(self, arguments: list[str], folder: Path, environment: Mapping[str, str], output: Path) -> None:
        self._mark = f"{os.getpid()}-{output.name}"
        self._output, self._started = output, time.monotonic()
        with output.open("w", encoding="utf-8") as screen:
            self.script = subprocess.Popen(
                arguments,
                cwd=folder,
                env={**environment, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=screen,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def printed(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    @property
    def running(self) -> bool:
        return self.script.poll() is None

    def processes(self) -> list[int]:
        """All living processes of this command, its own first."""
        wanted = f"{MARK}={self._mark}".encode()
        return [pid for pid in sorted(map(int, filter(str.isdigit, os.listdir("/proc")))) if _is_marked(pid, wanted)]

    def training(self) -> list[int]:
        """The training processes; without a launcher, the script's process."""
        ranked = [pid for pid in self.processes() if b"\0LOCAL_RANK=" in b"\0" + _read(pid, "environ")]
        return [pid for pid in ranked if not _reads_ahead(pid)] or [self.script.pid]

    def wait_for(self, condition: Callable[[], bool], seconds: float, pause: float = 0.005) -> bool:
        """Wait until a condition holds; return False if the command ended or the time ran out first."""
        until = time.monotonic() + seconds
        while self.running and time.monotonic() < until:
            if condition():
                return True
            time.sleep(pause)
        return False

    def end(self, seconds: float = LONGEST) -> Ended:
        """Wait for the command's end; a command that takes longer is killed."""
        try:
            self.script.wait(seconds)
        except subprocess.TimeoutExpired:
            self.remove()
        return Ended(self.script.wait(), self.printed, time.monotonic() - self._started)

    def left_after(self, seconds: float) -> list[int]:
        """Return the processes still alive after `seconds`, and kill them."""
        until = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.1)
        self.remove()
        return left

    def remove(self) -> None:
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


class Workshop:
    """A folder with a copy of the project, for runs on the tiny world."""

    def __init__(self, root: Path) -> None:
        self.root, self.logs, self.data = root, root / "logs", root / "data" / "tiny"
        self._commands = 0
        for folder in ("lr2ppo", "configs", "scripts"):
            shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for script in REPOSITORY.glob("*.sh"):
            shutil.copy(script, root)
        (root / "screens").mkdir()
        write_world(self.data)

    def start(
        self, stage: str, name: str, *more: str, processes: int = 1, before: Sequence[str] = (), **environment: str
    ) -> Job:
        """Start a stage's script on the tiny world; `more` are further arguments, `before` a command that runs it."""
        common = [name, f"data.root={self.data}", "device=cpu"]
        return self.launch([*before, "sh", STAGES[stage].script, *common, *more], processes=processes, **environment)

    def launch(self, arguments: list[str], processes: int = 1, **environment: str) -> Job:
        """Start a command in the folder."""
        self._commands += 1
        settings = {"PYTHON": sys.executable, "PRESET": "mini", "NPROC": str(processes), "CUDA_VISIBLE_DEVICES": ""}
        settings |= {
            "XDG_CACHE_HOME": str(self.root / "cache"),
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "passive",
            **environment,
        }
        output = self.root / "screens" / f"{self._commands:04}.txt"
        return Job(arguments, self.root, os.environ | settings, output)

    def run(self, stage: str, name: str, *more: str, processes: int = 1, **environment: str) -> Ended:
        """Run a stage's script to its end."""
        return self.start(stage, name, *more, processes=processes, **environment).end()

    def folder(self, stage: str, name: str) -> Path:
        return self.logs / stage / name


def write_world(root: Path, clips: int = 48) -> None:
    """Write clips of random features whose labels have random grades, in LRMovieNet's layout."""
    rng = np.random.default_rng(0)
    with FeatureWriter(root / "clean_feat.h5", {"tokens_per_frame": 1}) as store:
        source, target = ([_clip(f"{kind}-{i}", rng, store) for i in range(clips)] for kind in ("source", "target"))
        held_out = [_clip(f"validation-{i}", rng, store) for i in range(12)]
    write_clips(root / annotations.SOURCE_TRAIN, source)
    write_clips(root / annotations.TARGET_PAIRS, [_with_pairs(clip) for clip in target])
    write_clips(root / annotations.TARGET_TRAIN, target)
    write_clips(root / annotations.VALIDATION, held_out)
    write_clips(root / annotations.TEST, held_out)


def weights(folder: Path) -> dict[str, bytes]:
    """The bytes of a run's best and last weights, by path in its folder."""
    places = [*folder.glob("best/**/*.safetensors"), *folder.glob("checkpoints/last/**/*.safetensors")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in places}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows a run logged, without `seconds`."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def difference(whole: Path, folder: Path) -> str:
    """How a finished run differs from an uninterrupted one; empty if it does not."""
    if not (folder / "finished.json").is_file():
        return "the run is not finished"
    wanted, found = weights(whole), weights(folder)
    other = [name for name in sorted(wanted | found) if wanted.get(name) != found.get(name)]
    if other:
        return f"other weights in {', '.join(other)}"
    return "" if rows(whole) == rows(folder) else "other rows in metrics.jsonl"


def fault_of_refusal(ended: Ended, message: str) -> str:
    """Why a command was not refused with one message that contains `message`; empty if it was."""
    faults = [f"ended with exit code {ended.code}, wanted 2"] * (ended.code != 2)
    faults += ["a traceback reached the screen"] * (TRACEBACK in ended.printed)
    messages = len(re.findall("(?m)^(error|usage):", ended.printed))
    faults += [f"found {messages} messages, wanted one"] * (messages != 1)
    faults += [f"did not print {message!r}"] * (message not in ended.printed)
    return f"{'; '.join(faults)}; it printed: {ended.printed[-1500:]}" if faults else ""


def _clip(name: str, rng: np.random.Generator, store: FeatureWriter) -> Clip:
    lengths = rng.integers(2, TOKENS + 1, size=LABELS)
    text = [rng.normal(size=(length, WIDTH)).astype(np.float32) for length in lengths]
    store.write(name, text, rng.normal(size=(FRAMES, WIDTH)).astype(np.float32))
    return Clip(name, tuple(f"label {i}" for i in range(LABELS)), grades=rng.permutation(LABELS) // 2)


def _with_pairs(clip: Clip) -> Clip:
    grades = annotations.graded(clip)
    return Clip(clip.id, clip.labels, grades, pairs=annotations.better_worse_pairs(grades))


def _read(pid: int, what: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{what}").read_bytes()
    except OSError:
        return b""


def _is_marked(pid: int, mark: bytes) -> bool:
    # A zombie process has no command line.
    return mark in _read(pid, "environ").split(b"\0") and bool(_read(pid, "cmdline"))


def _parent(pid: int) -> int:
    return int(_read(pid, "stat").rpartition(b")")[2].split()[1] or 0)


def _reads_ahead(pid: int) -> bool:
    """Whether a process is a data-loading worker of a training process."""
    return b"\0LOCAL_RANK=" in b"\0" + _read(_parent(pid), "environ")
