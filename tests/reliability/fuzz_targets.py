"""What the long fuzz run feeds: the cases of the short fuzz tests, and two that need a trained run or a server."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.config import test_fuzz_config
from tests.data import test_fuzz_annotations, test_fuzz_frames
from tests.data.convert import test_fuzz_table
from tests.data.features import test_fuzz_store
from tests.helpers.fuzz import Case
from tests.inference import test_fuzz_folders
from tests.models import test_fuzz_weights
from tests.reliability import fuzz_checkpoints, fuzz_demo
from tests.runs import test_fuzz_runs


@dataclass(frozen=True)
class Target:
    """Cases that share valid files, which `write_valid` writes into a folder."""

    cases: Mapping[str, Case]
    write_valid: Callable[[Path], None] | None = None
    seconds: int = 20


TARGETS = {
    "annotations": Target(test_fuzz_annotations.CASES),
    "configs": Target(test_fuzz_config.CASES),
    "features": Target(test_fuzz_store.CASES, test_fuzz_store.write_valid),
    "weights": Target(test_fuzz_weights.CASES, test_fuzz_weights.write_valid),
    "folders": Target(test_fuzz_folders.CASES, test_fuzz_folders.write_valid),
    "runs": Target(test_fuzz_runs.CASES, test_fuzz_runs.write_valid),
    "checkpoints": Target(fuzz_checkpoints.CASES, fuzz_checkpoints.write_valid, seconds=60),
    "tables": Target(test_fuzz_table.CASES),
    "frames": Target(test_fuzz_frames.CASES, test_fuzz_frames.write_valid),
    "demo": Target(fuzz_demo.CASES, fuzz_demo.write_valid, seconds=60),
}
