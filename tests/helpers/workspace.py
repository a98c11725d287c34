"""A copy of the project's scripts and code in a separate folder, run as a user would."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY


@dataclass(frozen=True)
class Workspace:
    root: Path
    preset: str

    @classmethod
    def make(cls, root: Path, preset: str = "mini") -> "Workspace":
        for folder in ("lr2ppo", "configs", "scripts"):
            shutil.copytree(REPOSITORY / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        for script in REPOSITORY.glob("*.sh"):
            shutil.copy(script, root)
        return cls(root, preset)

    def run(self, *command: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
        """Run a command with this test's interpreter, on this workspace's preset."""
        environment = self._environment(processes)
        return subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=300)

    def start(self, *command: str, processes: int = 1) -> subprocess.Popen[bytes]:
        """Start a command in the background, for signals; its output is discarded."""
        quiet = subprocess.DEVNULL
        return subprocess.Popen(
            command, cwd=self.root, env=self._environment(processes), stdout=quiet, stderr=quiet, start_new_session=True
        )

    def _environment(self, processes: int) -> dict[str, str]:
        environment = os.environ | {"PYTHON": sys.executable, "NPROC": str(processes), "PRESET": self.preset}
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
        return environment

    def ok(self, *command: str, processes: int = 1) -> str:
        """Run a command that must succeed; returns what it printed."""
        done = self.run(*command, processes=processes)
        assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def refused(self, *command: str, processes: int = 1) -> str:
        """Run a command that must end with exit code 2 and one message; returns the message."""
        done = self.run(*command, processes=processes)
        assert done.returncode == 2, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        assert done.stderr.count("error:") <= 1
        return done.stderr


def wait_for(happened: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
