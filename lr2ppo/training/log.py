"""The logs of a training run: lines on the screen, `train.log`, `metrics.jsonl` and TensorBoard events."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from tqdm import tqdm

from lr2ppo.config.load import config_leaves
from lr2ppo.config.schema import RunConfig
from lr2ppo.evaluation.scoring import Evaluation
from lr2ppo.files import open_to_append
from lr2ppo.runs.lookup import METRICS
from lr2ppo.terminal import printable
from lr2ppo.training.progress import time_left
from lr2ppo.training.tensorboard import TensorBoard

# The metrics shown on the screen; `metrics.jsonl` and TensorBoard have all.
SHOWN = ("loss", "accuracy", "reward", "reversed", "ndcg@1", "ndcg@5", "ndcg", "pair_accuracy")
# TensorBoard gets images at most once in each of these intervals of a run's steps.
IMAGE_INTERVALS = 5
# Settings that are specific to a machine or change no result: left out of TensorBoard's table of runs.
NOT_COMPARED = ("name", "logs", "device", "data.root", "data.workers", "data.keep", "safety.")


class RunLog:
    """The log files of a run; only the main process has one."""

    def __init__(self, folder: Path, config: RunConfig, steps: int, last_step: int | None) -> None:
        """Open the files in `folder` for appending; TensorBoard hides what was logged after `last_step`."""
        self._folder, self._metrics = folder, open_to_append(folder / METRICS)
        self._log = open_to_append(folder / "train.log")
        self._tensorboard = TensorBoard(folder, config.data.root, None if last_step is None else last_step + 1)
        leaves = dict(config_leaves(config.model_dump(mode="json")))
        self._settings = {key: value for key, value in leaves.items() if not key.startswith(NOT_COMPARED)}
        self._steps = steps

    def log(self, text: str) -> None:
        """Print a line above the progress bar, and append it to `train.log` with the time."""
        tqdm.write(printable(text))
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        self._log.flush()

    def record(
        self,
        step: int,
        seconds: float,
        train: Mapping[str, float],
        evaluation: Evaluation,
        best_step_before: int | None,
        improved: bool,
        seconds_left: float | None,
    ) -> None:
        """Log an evaluation and the training means since the last one; `best_step_before` is None for the first."""
        scalars = {f"train/{name}": value for name, value in train.items()}
        scalars |= {f"validation/{name}": value for name, value in evaluation.metrics.items()}
        self._metrics.write(json.dumps({"step": step, "seconds": round(seconds, 3), **scalars}) + "\n")
        self._metrics.flush()
        # The first best step of each interval, also in a run that resumes.
        with_images = improved and (best_step_before is None or self._interval(step) > self._interval(best_step_before))
        self._tensorboard.log(step, scalars, evaluation, with_images)
        values = [*train.items(), *evaluation.metrics.items()]
        shown = [f"{name} {value:.4f}" for name, value in values if name in SHOWN]
        shown += ["best so far"] * improved
        shown += [] if seconds_left is None else [time_left(seconds_left)]
        self.log(f"step {step:>{len(str(self._steps))}}/{self._steps}  {'  '.join(shown)}")

    def sync(self) -> int:
        """Flush the metrics to the disk; return their size in bytes."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        # By its path: in a folder that is gone, an open file could still be written.
        return self._folder.joinpath(METRICS).stat().st_size

    def finish(self, step: int, best: Mapping[str, float]) -> None:
        """Log the settings and the metrics of the best step, for TensorBoard's table of runs."""
        self._tensorboard.log_result(step, self._settings, best)

    def _interval(self, step: int) -> int:
        return step * IMAGE_INTERVALS // self._steps


def cut_metrics(folder: Path, size: int) -> None:
    """Remove what `metrics.jsonl` has after its first `size` bytes; raises ValueError if it has fewer."""
    found = folder.joinpath(METRICS).stat().st_size
    if found < size:
        raise ValueError(f"{METRICS} has {found:,} bytes, and had {size:,}")
    os.truncate(folder / METRICS, size)
