"""Runs on disk: found by name, by path or as the newest of a stage, and what their folders hold.

A run's folder has its config and its best weights. Published checkpoints that were converted before conversion wrote a
config are the exception: of these, a folder has weights alone. `read_run` and `read_finished` answer for both, so that
nothing else needs to know the difference.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from lr2ppo.config.schema import DataConfig, ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.runs.stages import STAGES, stage_for_model

CONFIG, FINISHED, PROGRESS = "config.yaml", "finished.json", "progress.json"
METRICS, RESULTS = "metrics.jsonl", "results.json"
WEIGHTS = Path("best", "config.json")
# In finished.json, of a run that was not trained here: the checkpoint that its weights were converted from.
CONVERTED_FROM = "converted_from"
# What a config has in place of a run that a run starts from.
NO_RUN = (None, "none", "newest")
# What published checkpoints read, as configs/lrmovienet has it, and its preset.
PUBLISHED_PRESET = "lrmovienet"
PUBLISHED_DATA = {
    "root": "data/LRMovieNet",
    "features": ["clean_feat.h5"],
    "train": "first_stage_data.json",
    "validation": "val_data.json",
    "test": "test_data.json",
    "frames": 16,
    "frame_order": "even",
    "workers": 4,
    "strict": True,
}


def find_run(reference: str, stages: Collection[str], logs: Path) -> Path:
    """The folder of a run given as NAME, STAGE/NAME or a path; of several stages the last that has it.

    Raises `UserError` naming the runs there are, or the command that makes one.
    """
    in_order = [stage for stage in STAGES if stage in stages]
    places = [logs / stage / reference for stage in reversed(in_order)] + [logs / reference, Path(reference)]
    for place in filter(is_run, places):
        found = read_run(place)["stage"]
        if found not in stages:
            raise UserError(f"{reference}: is a run of stage {found}, wanted one of {' or '.join(in_order)}")
        return place
    known = sorted(
        str(folder.relative_to(logs)) for stage in stages for folder in logs.glob(f"{stage}/*") if is_run(folder)
    )
    make = f"make it with: sh {STAGES[in_order[-1]].script} {reference}"
    there = f"there are: {', '.join(known)}" if known else make
    raise UserError(f"{reference}: found no such run under {logs}; {there}")


def find_earlier(reference: str, stage: str, preset: str, logs: Path) -> Path:
    """A finished run of an earlier stage: `newest`, the last one trained on a preset, or as `find_run` takes it."""
    command = f"PRESET={preset} sh {STAGES[stage].script} NAME"
    if reference != "newest":
        folder = find_run(reference, (stage,), logs)
        if read_finished(folder) is None:
            raise UserError(f"{folder}: this {stage} run has not finished; wait for it, or make another: {command}")
        return folder
    finished = [
        (ended.get("finished", 0.0), path.parent)
        for path in logs.glob(f"{stage}/*/{FINISHED}")
        if (ended := read_finished(path.parent)) is not None
        and CONVERTED_FROM not in ended
        and read_run(path.parent).get("preset") == preset
    ]
    if not finished:
        raise UserError(f"found no finished {stage} run of preset {preset} under {logs}; make one first: {command}")
    return max(finished)[1]


def source_runs(folder: Path) -> dict[str, Path | None]:
    """The runs that a run started from, by their keys in its config; None for one that is not there any more.

    What was in the same logs folder is looked for beside the run first: the folder may have moved since, and what has
    its old path now may be another run.
    """
    config = read_run(folder)
    found: dict[str, Path | None] = {}
    for key, stage in STAGES[config["stage"]].sources.items():
        if config.get(key) in NO_RUN:
            continue
        path = Path(str(config[key]))
        beside = folder.resolve().parents[1] / stage / path.name
        places = [beside, path] if path.is_relative_to(str(config.get("logs"))) else [path, beside]
        found[key] = next((place for place in places if _is_run_of(place, stage)), None)
    return found


def _is_run_of(folder: Path, stage: str) -> bool:
    """Whether a folder is a run of a stage, and has weights; one whose config is damaged is none."""
    try:
        return (folder / WEIGHTS).is_file() and is_run(folder) and read_run(folder)["stage"] == stage
    except UserError:
        return False


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or _has_weights_alone(folder)


def read_run(folder: Path) -> dict[str, Any]:
    """A run's resolved config as a plain tree."""
    if _has_weights_alone(folder):
        return _config_of_weights(folder)
    try:
        tree = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{folder / CONFIG}: cannot be read: {error}") from None
    if not isinstance(tree, dict) or tree.get("stage") not in list(STAGES):
        raise UserError(f"{folder / CONFIG}: names no stage; is it a run's folder?")
    return tree


def read_finished(folder: Path) -> dict[str, Any] | None:
    """What a run's folder says of its end: None where the run goes on. Raises `UserError` where that is damaged."""
    if _has_weights_alone(folder):
        return {"steps": 0, "best_step": 0, "best_metric": None, CONVERTED_FROM: "a published checkpoint"}
    try:
        return read_mapping(folder / FINISHED) or None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {error}; train the run again with --fresh") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """A JSON file's mapping, empty where there is no such file; raises ValueError where it is anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise ValueError(f"{path.name} is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no mapping")
    return found


def read_data(folder: Path) -> DataConfig:
    """The data that a run was made for."""
    try:
        return DataConfig.model_validate(read_run(folder).get("data"))
    except ValidationError as error:
        raise UserError(f"{folder / CONFIG}: its section data cannot be used: {error}") from None


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
    """A finished run's validation metrics at the step whose weights it kept; none where its weights were converted.

    Raises `UserError` where the run goes on.
    """
    finished = read_finished(folder)
    if finished is None:
        raise UserError(f"{folder}: has not finished; the command that started it goes on where it stopped")
    if CONVERTED_FROM in finished:
        return {}
    try:
        row = next(row for row in read_rows(folder) if row["step"] == finished["best_step"])
    except (ValueError, LookupError, TypeError, StopIteration) as error:
        raise UserError(f"{folder}: has no metrics of its best step: {error!r}; train it again") from None
    return {name.partition("/")[2]: value for name, value in row.items() if name.startswith("validation/")}


def read_temperature(folder: Path) -> float:
    """The temperature that a reward run fitted on validation; 1 where it fitted none."""
    found = best_validation(folder) if read_finished(folder) is not None else {}
    return found.get("temperature", 1.0)


def _has_weights_alone(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() and not (folder / CONFIG).exists()


def _config_of_weights(folder: Path) -> dict[str, Any]:
    """The config that weights alone stand for: LRMovieNet's data, with as many frames as the model takes."""
    try:
        description = json.loads((folder / WEIGHTS).read_text(encoding="utf-8"))
        shape = ModelConfig.model_validate(description["shape"])
        stage = stage_for_model(description["model"], folder.resolve().parent.name)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / WEIGHTS}: does not describe a model: {error}; convert it again") from None
    data = PUBLISHED_DATA | {"frames": shape.clip_frames}
    return {"stage": stage.name, "preset": PUBLISHED_PRESET, "name": folder.name, "data": data}
