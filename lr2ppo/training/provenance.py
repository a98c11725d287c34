"""The provenance of a run: the program's versions and commit, and the machine."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from lr2ppo.distributed.processes import Processes
from lr2ppo.version import __version__

PACKAGES = ("torch", "transformers", "timm", "numpy")
REPOSITORY = Path(__file__).resolve().parents[2]


def describe_program() -> dict[str, str]:
    """The versions of the program, Python and the main packages, and the commit if it is known."""
    versions = {"lr2ppo": __version__, "python": platform.python_version()}
    versions |= {package: version(package) for package in PACKAGES}
    commit = find_commit(REPOSITORY)
    return versions if commit is None else versions | {"commit": commit}


def find_commit(repository: Path) -> str | None:
    """The checked-out commit, with `+changes` if files differ from it; None outside version control."""
    git = shutil.which("git")
    if git is None or not (repository / ".git").exists():
        return None
    try:
        outputs = [
            subprocess.run([git, "-C", str(repository), *ask], capture_output=True, text=True, check=True, timeout=10)
            for ask in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return outputs[0].stdout.strip() + "+changes" * bool(outputs[1].stdout.strip())


def describe_machine(processes: Processes) -> dict[str, str | int | float]:
    """The device, processor, cores, memory, system and number of processes."""
    on_gpu = processes.device.type == "cuda"
    device = torch.cuda.get_device_name(processes.device) if on_gpu else "CPU"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "device": device,
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0,
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "processes": processes.world_size,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
