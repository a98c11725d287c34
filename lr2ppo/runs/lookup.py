"""Finding the runs there are: by name, by path, or the newest of a stage."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lr2ppo.config.schema import DataConfig
from lr2ppo.errors import UserError

FINISHED, PROGRESS, METRICS, RESULTS = "finished.json", "progress.json", "metrics.jsonl", "results.json"
COMMANDS = {"pointwise": "pointwise.sh", "reward": "reward_pair_dataloader.sh", "ppo": "ppo.sh"}
# What of validation chooses the best weights.
SELECTED = {"pointwise": "ndcg", "reward": "pair_accuracy", "ppo": "ndcg"}


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


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's evaluations; one that is being written, or was when its process died, is none yet.

    Raises ValueError where one is damaged.
    """
    path = folder / METRICS
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            raise ValueError(f"{METRICS}, line {number}, is not JSON") from None
    return rows


def best_validation(folder: Path) -> dict[str, float]:
    """A finished run's validation metrics at the step whose weights it kept; raises `UserError` where it goes on."""
    if not (folder / FINISHED).is_file():
        raise UserError(f"{folder}: has not finished; the command that began it goes on where it stopped")
    try:
        best = json.loads((folder / FINISHED).read_text(encoding="utf-8"))["best_step"]
        row = next(row for row in read_rows(folder) if row["step"] == best)
    except (ValueError, LookupError, TypeError, StopIteration) as error:
        raise UserError(f"{folder}: tells no metrics of its best step: {error!r}; train it again") from None
    return {name.partition("/")[2]: value for name, value in row.items() if name.startswith("validation/")}


def read_temperature(folder: Path) -> float:
    """The temperature that a reward run fitted on validation; 1 where it tells none."""
    told = best_validation(folder) if (folder / FINISHED).is_file() else {}
    return told.get("temperature", 1.0)


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


def read_data(folder: Path) -> DataConfig:
    """The data that a run was made for."""
    try:
        return DataConfig.model_validate(read_run(folder).get("data"))
    except ValidationError as error:
        raise UserError(f"{folder / 'config.yaml'}: its section data cannot be used: {error}") from None
