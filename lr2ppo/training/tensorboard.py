"""The TensorBoard events of a run: scalars, histograms, images of cases, and settings with their results."""

import errno
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from lr2ppo.evaluation.pictures import Pixels, case_picture, read_thumbnails
from lr2ppo.evaluation.scoring import Evaluation

BINS = 40
# More than an evaluation with images takes on the disk.
MIN_FREE_BYTES = 2**19


class TensorBoard:
    """A run's TensorBoard events, in its folder."""

    def __init__(self, folder: Path, frames_root: Path, purge_step: int | None) -> None:
        """TensorBoard hides events already logged at `purge_step` or later."""
        self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        self._folder, self._frames_root = folder, frames_root
        self._thumbnails: dict[str, list[Pixels]] = {}

    def log(self, step: int, scalars: Mapping[str, float], evaluation: Evaluation, pictures: bool) -> None:
        """Log an evaluation and the training means; an image of a case costs about 70 ms and 65 KB.

        Raises OSError if the disk has no room.
        """
        if shutil.disk_usage(self._folder).free < MIN_FREE_BYTES:
            # Checked first: in the writer's thread, a full disk would raise a traceback.
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._folder))
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        for name, values in evaluation.histograms.items():
            finite = values[np.isfinite(values)]
            if len(finite):
                self._writer.add_histogram(name, finite, step, bins=BINS)
        for number, (clip, scores) in enumerate(evaluation.cases if pictures else [], start=1):
            if clip.id not in self._thumbnails:
                self._thumbnails[clip.id] = read_thumbnails(clip, self._frames_root)
            picture = case_picture(clip, scores, self._thumbnails[clip.id])
            self._writer.add_image(f"validation_cases/{number}", picture, step, dataformats="HWC")
        # So that nothing is lost if this process is killed.
        self._writer.flush()

    def log_result(self, step: int, settings: Mapping[str, Any], best: Mapping[str, float]) -> None:
        """Log a finished run's settings and its metrics at the best step, for the table of runs, and close the file."""
        metrics = {f"best/{name}": value for name, value in best.items()}
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in settings.items()
        }
        # Not `add_hparams`: it would write a separate run in a new folder. To mypy, a writer has no file_writer.
        file: Any = self._writer.file_writer
        for summary in hparams(plain, metrics):
            file.add_summary(summary, step)
        self._writer.close()
