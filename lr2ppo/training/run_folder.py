"""The folder of a training run, `logs/<stage>/<name>/`: lock it, check it, and create or resume the run."""

import os
import re
import resource
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from lr2ppo.config.load import config_leaves, dump_config
from lr2ppo.config.schema import ComputeConfig, RunConfig
from lr2ppo.data.features.encoders import FEATURES_FILE, encoding_differences, read_features_file
from lr2ppo.data.features.store import FeatureStore
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError, raise_faults
from lr2ppo.files import check_no_links, write_text
from lr2ppo.runs.lock import lock_run
from lr2ppo.runs.lookup import (
    FINISHED,
    PLACE_KEYS,
    SOURCES,
    find_source_run,
    is_newest,
    names_run,
    read_inputs,
    read_run,
    read_settings,
    weights_fingerprint,
)
from lr2ppo.runs.stages import STAGES
from lr2ppo.terminal import printable
from lr2ppo.training.checkpoint import Checkpoint, newest_checkpoint, remove_checkpoints

C = TypeVar("C", bound=RunConfig)

WHAT_IS_READ = {
    "train": "the annotations of data.train",
    "validation": "the annotations of data.validation",
    "graded": "the annotations of train.graded",
    "features": "the features of these clips",
}
CHECKPOINTS = "checkpoints"
# The weights of the last step of a finished run.
LAST = f"{CHECKPOINTS}/last"
START_AGAIN = "use another name, or train it again with --fresh"
# Settings that may change when a run resumes: they change no result, or the run keeps its value (global batch).
CHANGEABLE_KEYS = (
    *PLACE_KEYS,
    *("train.clips_per_batch", "safety."),
    *(f"compute.{key}" for key in ComputeConfig.model_fields if key != "accumulate"),
)


def run_folder(config: RunConfig) -> Path:
    """Return `logs/<stage>/<name>`; raise `UserError` if the name is missing or is not a valid folder name."""
    if config.name is None:
        raise UserError(f"name: is missing; run sh {STAGES[config.stage].script} NAME, or give name=NAME")
    if not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", config.name):
        raise UserError(f"name: found {config.name!r}, wanted only letters, digits and . _ + -, such as demo-2")
    return config.logs / config.stage / config.name


def claim_run(folder: Path, processes: Processes, fresh: bool) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """Lock a run's folder; return the checkpoint that the run resumes from, if any, and notes about damaged ones.

    Changes nothing in the folder. Raises `UserError` if the run is finished (unless `fresh`), if another process has
    locked it, or if the folder is not a run.
    """
    found: tuple[Checkpoint | None, tuple[str, ...]] = (None, ())
    if processes.is_main:
        lock_run(folder)
        # A process restarted by its launcher resumes, even with --fresh.
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        if folder.exists() and (restarted or not fresh):
            found = _find_checkpoint(folder)
    return processes.gather(found)[0]


def resolve_sources(config: C, started: Path | None) -> tuple[C, dict[str, Path]]:
    """Find the runs that a run starts from; return the config with their paths, and the paths by config key.

    A run that has started, in the folder `started`, keeps the runs it started from, even if newer ones exist. Raises
    `UserError` if a run is missing or has not finished, or if a stage without a model in its config is given `none`.
    """
    kept = {} if started is None else read_run(started)
    sources = {}
    for key in STAGES[config.stage].sources:
        reference: str = getattr(config, key)
        is_kept = is_newest(reference) and key in kept
        folder = find_source(config, key, kept[key] if is_kept else reference)
        if started is not None and folder is not None and is_kept:
            _check_known(started, key, folder)
        if folder is not None:
            sources[key] = folder
    return config.model_copy(update={key: str(folder) for key, folder in sources.items()}), sources


def _check_known(started: Path, key: str, source: Path) -> None:
    """Raise `UserError` if a run that resumes names a run elsewhere without knowing its weights.

    The folder may come from someone else, whose run must not choose which other runs are read.
    """
    if source.resolve().parent.parent != started.resolve().parent.parent and key not in read_inputs(started):
        raise UserError(
            f"{started}: {key}: found {source}, which is in another folder, and it is not known which weights it had; "
            f"if the run shall start from it, give {key}={source}"
        )


def find_source(config: RunConfig, key: str, reference: str) -> Path | None:
    """Find the finished run that a run starts from, as `find_source_run`; None for `none`.

    Raises `UserError` if there is none, or if a stage is given `none` for what it cannot do without.
    """
    if reference != "none":
        return find_source_run(reference, STAGES[config.stage].sources[key], config.preset, config.logs)
    if "model" not in type(config).model_fields and not (key == "reward" and config.reads_grades):
        raise UserError(f"{key}: found none, wanted newest, a name or a path: the run has its model from another")
    return None


def check_resumable(folder: Path, config: RunConfig, store: FeatureStore) -> None:
    """Raise `UserError` if a run started with other settings, or with features of other encoders, than it has now."""
    before, now = read_settings(folder), dict(config_leaves(config.model_dump(mode="json")))
    # The runs that it started from may have moved.
    compared_by_weights = {key for key in SOURCES if key in read_inputs(folder) and names_run(now.get(key))}
    # What a finished run was trained with cannot change.
    may_change = PLACE_KEYS if (folder / FINISHED).is_file() else CHANGEABLE_KEYS
    differing = [
        f"{key}: found {now.get(key)!r}, the run started with {before.get(key)!r}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith(may_change) and key not in compared_by_weights
    ]
    raise_faults(folder, differing, f"a run keeps the settings it started with; {START_AGAIN}")
    # Runs of earlier versions have no such file.
    if (folder / FEATURES_FILE).is_file():
        others = encoding_differences(store.encoding, read_features_file(folder))
        raise_faults(
            folder,
            [f"{store.paths[0]}: made with {fact}" for fact in others],
            f"a run keeps the encoders it started with; {START_AGAIN}",
        )


def check_same_inputs(folder: Path, fingerprints: Mapping[str, str]) -> None:
    """Raise `UserError` if a run started with other annotations, features or source weights than these.

    Runs of earlier versions kept no fingerprints.
    """
    before = read_inputs(folder)
    differing = [
        f"{WHAT_IS_READ.get(key, f'the weights of its {key} run')}: found other content ({now[:12]}) than when the run "
        f"started ({str(before[key])[:12]})"
        for key, now in fingerprints.items()
        if key in before and before[key] != now
    ]
    raise_faults(folder, differing, f"a run keeps the data it started with; restore it, {START_AGAIN}")


def check_same_sources(sources: Mapping[str, Path], fingerprints: Mapping[str, str]) -> None:
    """Raise `UserError` if a run that another starts from has other weights than its fingerprint, by config key, says.

    Called once all weights are read: they are then those that the fingerprints name.
    """
    for key, folder in sources.items():
        if weights_fingerprint(folder) != fingerprints.get(key):
            raise UserError(
                f"{folder}: its weights changed while this run read them, as they do when it is trained again; run the "
                "same command again once it has finished"
            )


def make_folder(folder: Path, config: RunConfig) -> None:
    """Create a new run's folder with its config; remove and report an existing folder.

    It may be a link to an empty folder. Raises `UserError` if it is one to a folder with files.
    """
    if not folder.is_symlink() and folder.exists():
        _remove(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise UserError(
            f"{folder}: is a link to {os.readlink(folder)}, which has files, and nothing is removed through a link; "
            "remove the link, or empty that folder"
        )
    text = dump_config(config)
    write_text(folder / "config.yaml", text)


def peak_memory_gib() -> float:
    """The peak memory of this process in GiB, on the GPU if it used one."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**30
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used / (2**30 if sys.platform == "darwin" else 2**20)


def _find_checkpoint(folder: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    # A run that resumes writes and removes files everywhere in its folder.
    check_no_links(folder)
    if (folder / FINISHED).exists():
        # A run that was killed while finishing may have left some.
        remove_checkpoints(folder / CHECKPOINTS)
        raise UserError(
            f"{folder}: a run of this name exists and is finished; "
            "use another name, or add --fresh to remove it and start again"
        )
    if all(path.name.startswith(".") for path in folder.iterdir()):
        # A run that was killed before it wrote anything.
        return None, ()
    if not (folder / "config.yaml").is_file():
        raise UserError(f"{folder}: exists and is not a run; use another name, or add --fresh to remove it")
    checkpoint, faults = newest_checkpoint(folder / CHECKPOINTS)
    return checkpoint, tuple(faults)


def _remove(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    state = "finished" if (folder / FINISHED).exists() else "unfinished"
    tqdm.write(printable(f"removing the {state} run in {folder}: {len(files)} files, {size:.1f} MiB"))
    # Rename first: a partly removed folder would not be a run.
    leaving = folder.rename(folder.with_name(f".{folder.name}.removed-{os.getpid()}"))
    shutil.rmtree(leaving)
