"""Run folders `logs/<stage>/<name>/`: making them, finding earlier ones, and what is written there."""

import json
import platform
import re
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from lr2ppo import __version__
from lr2ppo.config import TrainingConfig, dump_config
from lr2ppo.engine.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.files import write_json

FINISHED = "finished.json"
# What a line on the screen holds of an evaluation; `metrics.jsonl` and TensorBoard have it all.
SHOWN = ("loss", "accuracy", "reward", "reversed", "ndcg@1", "ndcg@5", "ndcg", "pair_accuracy")
# Writes a model into a folder; every process calls it, for the weights may be spread over them.
Save = Callable[[Path], None]
COMMANDS = {"pointwise": "pointwise.sh", "reward": "reward_pair_dataloader.sh", "ppo": "ppo.sh"}


class Run:
    """A training run's folder; only the main process writes to it and to the screen."""

    def __init__(self, config: TrainingConfig, processes: Processes) -> None:
        """Start the run's folder anew; `check_name` has said before that it may."""
        self.folder = run_folder(config)
        self.is_main = processes.is_main
        self.best: float | None = None
        self.best_step = 0
        self._started = time.time()
        if not self.is_main:
            return
        if self.folder.exists():
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True)
        (self.folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        self._metrics = (self.folder / "metrics.jsonl").open("a", encoding="utf-8")
        self._log = (self.folder / "train.log").open("a", encoding="utf-8")
        self._tensorboard = SummaryWriter(str(self.folder))

    def say(self, text: str) -> None:
        """One line on the screen, clear of progress bars, and in `train.log` with the time."""
        if self.is_main:
            tqdm.write(text)
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
            self._log.flush()

    def progress(self, steps: int) -> "tqdm[NoReturn]":
        """A progress bar over the run's steps, on the main process's terminal."""
        return tqdm(
            total=steps,
            desc=str(self.folder.relative_to(self.folder.parents[1])),
            disable=None if self.is_main else True,
        )

    def record(
        self,
        step: int,
        steps: int,
        train: Mapping[str, float],
        validation: Mapping[str, float],
        select: str,
        save: Save,
    ) -> None:
        """Log an evaluation and say it in a line; save the model in `best/` where validation's `select` is highest."""
        scalars = {f"train/{name}": value for name, value in train.items()}
        scalars |= {f"validation/{name}": value for name, value in validation.items()}
        improved = self.best is None or validation[select] > self.best
        if improved:
            self.best, self.best_step = validation[select], step
            save(self.folder / "best")
        if not self.is_main:
            return
        row = {"step": step, "seconds": round(time.time() - self._started, 3), **scalars}
        self._metrics.write(json.dumps(row) + "\n")
        self._metrics.flush()
        for name, value in scalars.items():
            self._tensorboard.add_scalar(name, value, step)
        shown = [f"{name} {value:.4f}" for name, value in [*train.items(), *validation.items()] if name in SHOWN]
        self.say(f"step {step:>{len(str(steps))}}/{steps}  {'  '.join(shown)}{'  best so far' if improved else ''}")

    @property
    def best_text(self) -> str:
        return "-" if self.best is None else f"{self.best:.4f}"

    def finish(self, step: int, models: Mapping[str, Save]) -> None:
        """Save the last weights under `checkpoints/last/` (the critic beside its actor) and mark the run finished."""
        for name, save in models.items():
            save(self.folder / "checkpoints" / "last" / name)
        if not self.is_main:
            return
        seconds = round(time.time() - self._started, 1)
        write_json(
            self.folder / FINISHED,
            {
                "steps": step,
                "best_metric": self.best,
                "best_step": self.best_step,
                "seconds": seconds,
                "peak_memory_gib": round(peak_memory_gib(), 2),
                "finished": time.time(),
                "lr2ppo": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
        )
        self.say(f"finished in {seconds:.0f} s; best weights (step {self.best_step}) are in {self.folder / 'best'}")

    def close(self) -> None:
        if self.is_main:
            self._tensorboard.close()
            self._metrics.close()
            self._log.close()


def check_name(config: TrainingConfig, processes: Processes, fresh: bool) -> None:
    """Raises `UserError` where the run's name is missing, malformed or taken (`fresh` allows a taken one)."""
    folder = run_folder(config)
    if processes.is_main and folder.exists() and not fresh:
        state = "is finished" if (folder / FINISHED).exists() else "has not finished"
        raise UserError(
            f"{folder}: there is a run of this name already, which {state}; "
            "take another name, or add --fresh to remove it and start anew"
        )


def run_folder(config: TrainingConfig) -> Path:
    """`logs/<stage>/<name>`; raises `UserError` where the name is missing or cannot be a folder's."""
    if config.name is None:
        raise UserError(f"name: is missing; run sh {COMMANDS[config.stage]} NAME, or give name=NAME")
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", config.name):
        raise UserError(f"name: found {config.name!r}, wanted letters, digits and . _ + - alone, such as demo-2")
    return config.logs / config.stage / config.name


def find_run(reference: str, stages: tuple[str, ...], logs: Path) -> Path:
    """The folder of a run given as NAME, STAGE/NAME or a path; of several stages the last that has it.

    Raises `UserError` naming the runs there are, or the command that makes one.
    """
    places = [logs / stage / reference for stage in reversed(stages)] + [logs / reference, Path(reference)]
    for place in places:
        if is_converted(place):
            return place
        if (place / "config.yaml").is_file():
            found = read_run(place)["stage"]
            if found not in stages:
                raise UserError(f"{reference}: is a run of stage {found}, wanted one of {' or '.join(stages)}")
            return place
    known = sorted(
        str(folder.relative_to(logs))
        for stage in stages
        for folder in logs.glob(f"{stage}/*")
        if (folder / "config.yaml").is_file() or is_converted(folder)
    )
    there = f"there are: {', '.join(known)}" if known else f"make it with: sh {COMMANDS[stages[-1]]} {reference}"
    raise UserError(f"{reference}: found no such run under {logs}; {there}")


def find_earlier(reference: str, stage: str, preset: str, logs: Path) -> Path:
    """A finished run of an earlier stage: `newest` of this preset, or as `find_run` takes it."""
    command = f"PRESET={preset} sh {COMMANDS[stage]} NAME"
    if reference != "newest":
        folder = find_run(reference, (stage,), logs)
        if not (folder / FINISHED).is_file() and not is_converted(folder):
            raise UserError(f"{folder}: this {stage} run has not finished; wait for it, or make another: {command}")
        return folder
    finished = [
        (json.loads(path.read_text(encoding="utf-8"))["finished"], path.parent)
        for path in logs.glob(f"{stage}/*/{FINISHED}")
        if read_run(path.parent).get("preset") == preset
    ]
    if not finished:
        raise UserError(f"found no finished {stage} run of preset {preset} under {logs}; make one first: {command}")
    return max(finished)[1]


def is_converted(folder: Path) -> bool:
    """Whether a folder holds the weights of a run alone, as a converted published checkpoint does."""
    return (folder / "best" / "config.json").is_file() and not (folder / "config.yaml").exists()


def read_run(folder: Path) -> dict[str, Any]:
    """A run's resolved config as a plain tree."""
    try:
        tree = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{folder / 'config.yaml'}: cannot be read: {error}") from None
    if not isinstance(tree, dict) or "stage" not in tree:
        raise UserError(f"{folder / 'config.yaml'}: names no stage; is it a run's folder?")
    return tree


def peak_memory_gib() -> float:
    """The most memory this process held, on the GPU where it used one."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)
