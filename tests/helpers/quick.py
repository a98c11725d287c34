"""Commands that should answer immediately, without importing torch and other large libraries, which takes seconds."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

# Runs the command as the installed script does, then names the large libraries it imported.
NAMES_LARGE_LIBRARIES = """
import sys
from lr2ppo.cli import main

try:
    main(sys.argv[1:])
finally:
    large = ("torch", "transformers", "timm", "h5py", "matplotlib", "gradio", "tensorboard")
    print("imported:", *sorted(set(large) & set(sys.modules)))
"""


def answered_at_once(code: int, *arguments: str, folder: Path = REPOSITORY) -> tuple[str, str]:
    """Run a command; return its stdout and stderr. It must exit with `code` and import no large library."""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", NAMES_LARGE_LIBRARIES, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    *printed, imported = done.stdout.splitlines()
    assert imported == "imported:", f"{' '.join(arguments)} {imported}"
    return "\n".join(printed), done.stderr
