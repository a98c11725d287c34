"""Find runs on disk by name, by path or as the newest of a stage, and read their folders.

A run's folder has its config and its best weights. Earlier versions converted published checkpoints without a config:
such a folder has only weights. `read_run` and `read_finished` handle both, so that nothing else needs to.
"""

import math
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lr2ppo.config.load import config_leaves
from lr2ppo.config.schema import DataConfig, ModelConfig
from lr2ppo.errors import UserError
from lr2ppo.files import (
    WEIGHTS_FILE,
    file_fingerprint,
    link_fault,
    model_files,
    parse_json,
    read_json,
    read_text,
    read_yaml,
    refuse_link,
    require_own,
)
from lr2ppo.runs.records import Calibration, Evaluated, Finished, TrainedOn, check_record, check_row
from lr2ppo.runs.stages import STAGES, stage_for_model

CONFIG, FINISHED, PROGRESS = "config.yaml", "finished.json", "progress.json"
METRICS, RESULTS = "metrics.jsonl", "results.json"
# Fingerprints of all that a run reads.
INPUTS = "inputs.json"
# The clips that a run, and those that it started from, were trained on.
TRAINED_ON = "trained_on.json"
WEIGHTS = Path("best", "config.json")
# In a folder that `lr2ppo export` wrote.
EXPORTED = "config.json"
# Key in finished.json of a run that was not trained here: the checkpoint that its weights were converted from.
CONVERTED_FROM = "converted_from"
# Key in finished.json: a fingerprint of the clips that its best weights were chosen on.
VALIDATED_ON = "validated_on"
# Keys that name the runs that a run starts from.
SOURCES = sorted({key for stage in STAGES.values() for key in stage.sources})
# Settings that say where a run is and how it is kept.
PLACE_KEYS = ("logs", "device", "data.root", "data.workers", "data.keep", "safety.checkpoint_", "safety.keep")
# Settings in which runs differ that are made the same way: their names and seeds, and where they ran.
OWN_KEYS = ("name", "seed", "safety.", *PLACE_KEYS, *SOURCES)
NEWEST = "newest"
# The preset of published checkpoints, and its data section as in configs/lrmovienet.
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
    """Find the folder of a run given as NAME, STAGE/NAME or a path; the last of several stages that have it.

    Raises `UserError` naming the existing runs, or the command that makes one.
    """
    in_order = [stage for stage in STAGES if stage in stages]
    for place in _named_runs(reference, in_order, logs):
        found = read_run(place)["stage"]
        if found not in stages:
            raise UserError(f"{reference}: is a run of stage {found}, wanted one of {' or '.join(in_order)}")
        return place
    known = sorted(
        str(folder.relative_to(logs)) for stage in stages for folder in logs.glob(f"{stage}/*") if is_run(folder)
    )
    parent = Path(reference).parent.name
    stage = parent if parent in in_order else in_order[-1]
    make = f"make it with: sh {STAGES[stage].script} {shlex.quote(Path(reference).name or 'NAME')}"
    there = f"there are: {', '.join(known)}" if known else make
    raise UserError(f"{reference}: found no such run under {logs}; {there}")


def is_exported(reference: str, logs: Path) -> bool:
    """Whether a reference is the path of a folder that `lr2ppo export` wrote.

    Raises `UserError` if a run has this name, too.
    """
    if not (Path(reference) / EXPORTED).is_file():
        return False
    if run := next(_named_runs(reference, list(STAGES), logs), None):
        raise UserError(
            f"{reference}: is an exported folder here, and the name of the run {run}; give the folder's whole path, "
            f"{Path(reference).absolute()}, or the run's, {run.absolute()}"
        )
    return True


def _named_runs(reference: str, in_order: Sequence[str], logs: Path) -> Iterator[Path]:
    """Yield the runs that a reference may mean, the last stage's first."""
    places = [logs / stage / reference for stage in reversed(in_order)] + [logs / reference, Path(reference)]
    return filter(is_run, places)


def split_row(reference: str) -> list[str]:
    """Split RUN,RUN,... into references of runs; a path of a run may hold commas."""
    return [reference] if is_run(Path(reference)) else reference.split(",")


def find_groups(references: Sequence[str], logs: Path) -> list[list[Path]]:
    """Find the folders of groups of runs, each given as RUN or as RUN,RUN,...: see `find_run`.

    Raises `UserError` if a run does not exist or is named twice, or if a group is not of different runs of one stage.
    """
    groups = [[find_run(name, STAGES, logs) for name in split_row(reference)] for reference in references]
    found: set[Path] = set()
    for folder in (folder for group in groups for folder in group):
        if folder.resolve() in found:
            raise UserError(f"{folder}: this run is named twice; name each run once")
        found.add(folder.resolve())
    for group in groups:
        _check_group(group)
    return groups


def _check_group(folders: Sequence[Path]) -> None:
    """Raise `UserError` unless runs are different runs of one stage; their weights are read only if there are several.

    Runs with other seeds may have equal weights: those of stage 3 that keep the weights they started from.
    """
    first, stage = folders[0], read_run(folders[0])["stage"]
    seen: dict[tuple[str, object], Path] = {}
    for folder in folders if len(folders) > 1 else ():
        config, weights = read_run(folder), weights_fingerprint(folder)
        if config["stage"] != stage:
            raise UserError(
                f"{folder}: is a run of stage {config['stage']}, {first} one of {stage}; a row A,B is of runs of one "
                "stage, so make a row of each: A B"
            )
        if weights is None:
            continue
        same = seen.setdefault((weights, config.get("seed")), folder)
        if same is not folder:
            raise UserError(f"{folder}: has the weights and the seed of {same}: it is the same run; name only one")


def differing_settings(folders: Sequence[Path]) -> list[str]:
    """Return the keys of the settings in which runs differ besides their seeds, names and places."""
    settings = [read_settings(folder) for folder in folders]
    keys = {key: None for own in settings for key in own if not key.startswith(OWN_KEYS)}
    return [key for key in keys if any(own.get(key) != settings[0].get(key) for own in settings)]


def read_settings(folder: Path) -> dict[str, Any]:
    """Read a run's settings by dotted keys; keys newer than the run have their defaults."""
    tree = read_run(folder)
    try:
        return dict(config_leaves(STAGES[tree["stage"]].config.model_validate(tree).model_dump(mode="json")))
    except ValidationError:
        return dict(config_leaves(tree))


def is_newest(reference: object) -> bool:
    """Whether a reference is `newest` or `STAGE/newest`: which run that is, is known when a run starts."""
    return reference in (NEWEST, *(f"{stage}/{NEWEST}" for stage in STAGES))


def names_run(reference: object) -> bool:
    """Whether the value of a config key names a source run."""
    return reference not in (None, "none") and not is_newest(reference)


def find_source_run(reference: str, stages: tuple[str, ...], preset: str, logs: Path) -> Path:
    """Find a finished run to start from: `newest`, the last one trained on a preset, or a reference for `find_run`.

    `newest` and NAME are runs of the first stage, `STAGE/newest`, STAGE/NAME and a path may be of any of them. Raises
    `UserError` if there is none, or if it has not finished.
    """
    stage = next((each for each in stages if reference == f"{each}/{NEWEST}"), stages[0])
    command = f"PRESET={shlex.quote(preset)} sh {STAGES[stage].script} NAME"
    if not is_newest(reference):
        folder = find_run(reference, stages if Path(reference).parent.name else (stage,), logs)
        if read_finished(folder) is None:
            raise UserError(f"{folder}: this run has not finished; wait for it, or train another: {command}")
        return folder
    finished = [
        (ended.get("finished", 0.0), path.parent)
        for path in logs.glob(f"{stage}/*/{FINISHED}")
        if (ended := read_finished(path.parent)) is not None
        and CONVERTED_FROM not in ended
        and read_run(path.parent).get("preset") == preset
    ]
    if not finished:
        raise UserError(f"found no finished {stage} run of preset {preset} under {logs}; train one first: {command}")
    return max(finished)[1]


def source_runs(folder: Path) -> dict[str, Path | None]:
    """Find the runs that a run started from, by their keys in its config; None for a missing one.

    A run that has other weights since, as it was trained again, is missing too, and so is one of another logs folder if
    it is not known which weights it had: see `explain_missing`.
    """
    config = read_run(folder)
    keys = [key for key in STAGES[config["stage"]].sources if names_run(config.get(key))]
    return {key: _source_run(folder, config, key) for key in keys}


def _source_run(folder: Path, config: Mapping[str, Any], key: str) -> Path | None:
    fingerprint = read_inputs(folder).get(key)
    places = _source_places(folder, config, key)
    found = next((place for place in places if has_own_weights(place) and has_weights(place, fingerprint)), None)
    if found is None or found.resolve().parent.parent == folder.resolve().parent.parent:
        return found
    # A run of someone else must not name any run to show or to export.
    return found if fingerprint is not None and weights_fingerprint(found) == fingerprint else None


def explain_missing(folder: Path, key: str) -> str:
    """Say what became of a run that a run started from and that is missing now."""
    config = read_run(folder)
    places = _source_places(folder, config, key)
    if not places:
        return f"{config[key]} no longer exists"
    if not all(map(has_own_weights, places)):
        return f"{config[key]} has its weights in another folder, by a link"
    if key not in read_inputs(folder):
        return f"{config[key]} is in another folder, and it is not known which weights it had"
    return f"{config[key]} was trained again since and has other weights"


def _source_places(folder: Path, config: Mapping[str, Any], key: str) -> list[Path]:
    """Where there is a run by the name of one that a run started from, the likelier first.

    A run of the same logs folder is searched beside this run first: the folder may have moved, and its old path may
    now hold another run.
    """
    path, stages = Path(str(config[key])), STAGES[config["stage"]].sources[key]
    stage = path.parent.name if path.parent.name in stages else stages[0]
    beside = folder.resolve().parent.parent / stage / path.name
    places = [beside, path] if path.is_relative_to(str(config.get("logs"))) else [path, beside]
    return [place for place in places if _is_run_of(place, stage)]


def has_own_weights(folder: Path) -> bool:
    """Whether a run's best weights lie in its folder, without links: someone else's could lead to any run's."""
    return not any(map(link_fault, model_files(folder / "best")))


def weights_fingerprint(folder: Path) -> str | None:
    """The SHA-256 of a run's best weights; None if it has none. Raises `UserError` if they are links or unreadable.

    A process reads the weights once, and again if the file changed.
    """
    path = folder / "best" / WEIGHTS_FILE
    require_own(model_files(folder / "best"))
    try:
        stat = path.stat()
        return _fingerprint(path, (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read: {error.strerror or error}; train the run again with --fresh"
        ) from None


@cache
def _fingerprint(path: Path, changes: tuple[int, ...]) -> str:
    """The fingerprint of a file whose state is `changes`."""
    return file_fingerprint(path)


def has_weights(folder: Path, fingerprint: str | None) -> bool:
    """Whether a run still has the weights of a fingerprint; also if one of both is unknown, as in earlier versions."""
    return fingerprint is None or weights_fingerprint(folder) in (fingerprint, None)


def read_evaluated(folder: Path) -> dict[str, Any]:
    """Read every split's part of `results.json`, checked as far as it says what was evaluated; empty if there is none.

    Raises ValueError if the file is damaged.
    """
    found = read_mapping(folder / RESULTS)
    check_record(dict[str, Evaluated], found, RESULTS)
    return found


def is_outdated(folder: Path, result: Mapping[str, Any]) -> bool:
    """Whether a split's part of `results.json` is about other weights than the run has now."""
    return not has_weights(folder, result.get("fingerprints", {}).get("weights"))


def _is_run_of(folder: Path, stage: str) -> bool:
    """Whether a folder is a run of a stage with weights; False if its config is damaged."""
    try:
        return (folder / WEIGHTS).is_file() and is_run(folder) and read_run(folder)["stage"] == stage
    except UserError:
        return False


def is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() or _has_only_weights(folder)


def read_run(folder: Path) -> dict[str, Any]:
    """Read a run's resolved config as a plain tree; raise `UserError` if it cannot be read or has no stage."""
    if _has_only_weights(folder):
        return _published_config(folder)
    try:
        refuse_link(folder / CONFIG)
        tree = read_yaml(folder / CONFIG)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / CONFIG}: cannot be read: {error}") from None
    if not isinstance(tree, dict) or tree.get("stage") not in list(STAGES):
        raise UserError(f"{folder / CONFIG}: has no stage; is it a run's folder?")
    try:
        check_record(dict[str, Any], tree, CONFIG)
        check_record(dict[str, str | None], {key: tree.get(key) for key in ("preset", "logs", *SOURCES)}, CONFIG)
    except ValueError as error:
        raise UserError(f"{folder}: {error}; is it a run's folder?") from None
    return tree


def read_finished(folder: Path) -> dict[str, Any] | None:
    """Read a run's finished.json; None if the run has not finished. Raises `UserError` if the file is damaged."""
    if _has_only_weights(folder):
        return {"steps": 0, "best_step": 0, "best_metric": None, CONVERTED_FROM: "a published checkpoint"}
    try:
        found = read_mapping(folder / FINISHED)
        if not found:
            return None
        check_record(Finished, found, FINISHED)
        # Those of earlier versions, or of converted runs, lack some.
        return {"seconds": 0.0, "peak_memory_gib": 0.0, "best_metric": None, **found}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {error}; train the run again with --fresh") from None


def read_inputs(folder: Path) -> dict[str, Any]:
    """Read the fingerprints of all that a run reads; empty for runs of earlier versions.

    Raises `UserError` if the file is damaged.
    """
    try:
        found = read_mapping(folder / INPUTS)
        check_record(dict[str, str], found, INPUTS)
        return found
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {error}; train the run again with --fresh") from None


def read_trained_on(folder: Path) -> TrainedOn | None:
    """Read the clips that a run was trained on; None for runs of earlier versions.

    Raises `UserError` if the file is damaged.
    """
    if not (folder / TRAINED_ON).exists():
        return None
    try:
        found = read_mapping(folder / TRAINED_ON)
        check_record(TrainedOn, found, TRAINED_ON)
        return TrainedOn.model_validate(found)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {error}; train the run again with --fresh") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Read a JSON mapping, empty if the file is missing; raise ValueError if it holds anything else, or is a link."""
    refuse_link(path)
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise ValueError(f"{path.name} is not JSON") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} holds no mapping")
    return found


def read_data(folder: Path) -> DataConfig:
    """Read the data section of a run's config; raise `UserError` if it cannot be used."""
    try:
        return DataConfig.model_validate(read_run(folder).get("data"))
    except ValidationError as error:
        raise UserError(f"{folder / CONFIG}: its section data cannot be used: {error}") from None


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of a run's evaluations, without an incomplete last row.

    Raises ValueError if a row is damaged.
    """
    path = folder / METRICS
    refuse_link(path)
    text = read_text(path) if path.exists() else ""
    rows = []
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            rows.append(parse_json(line))
        except (ValueError, RecursionError):
            raise ValueError(f"{METRICS}, line {number}, is not JSON") from None
        check_row(rows[-1], f"{METRICS}, line {number}")
    return rows


def best_validation(folder: Path) -> dict[str, float]:
    """Return a finished run's validation metrics at its best step; empty if its weights were converted.

    Raises `UserError` if the run has not finished.
    """
    finished = read_finished(folder)
    if finished is None:
        raise UserError(f"{folder}: has not finished; resume it with the command that started it")
    if CONVERTED_FROM in finished:
        return {}
    try:
        row = next(row for row in read_rows(folder) if row["step"] == finished["best_step"])
    except (ValueError, LookupError, TypeError, StopIteration) as error:
        raise UserError(f"{folder}: has no metrics for its best step: {error!r}; train it again") from None
    return {name.partition("/")[2]: value for name, value in row.items() if name.startswith("validation/")}


def read_temperature(folder: Path) -> float:
    """Read the temperature that a reward run fitted on validation; 1 if it fitted none."""
    found = best_validation(folder) if read_finished(folder) is not None else {}
    temperature = found.get("temperature", 1.0)
    if not 0 < temperature < math.inf:
        raise UserError(f"{folder}: found temperature {temperature}, wanted a number above 0; train it again")
    return temperature


def read_calibration(folder: Path) -> Calibration | None:
    """Read how a run's scores become probabilities; None if it was not fitted, as in runs of earlier versions.

    Raises `UserError` if it is damaged.
    """
    found = (read_finished(folder) or {}).get("calibration")
    return None if found is None else Calibration.model_validate(found)


def _has_only_weights(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() and not (folder / CONFIG).exists()


def _published_config(folder: Path) -> dict[str, Any]:
    """The config of a folder with only weights: LRMovieNet's data, with as many frames as the model takes."""
    require_own(model_files(folder / "best"))
    try:
        description = read_json(folder / WEIGHTS)
        shape = ModelConfig.model_validate(description["shape"])
        stage = stage_for_model(description["model"], folder.resolve().parent.name)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UserError(f"{folder / WEIGHTS}: does not describe a model: {error}; convert it again") from None
    data = PUBLISHED_DATA | {"frames": shape.clip_frames}
    return {"stage": stage.name, "preset": PUBLISHED_PRESET, "name": folder.name, "data": data}
