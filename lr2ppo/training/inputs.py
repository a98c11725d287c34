"""Open a stage's inputs and check them against the model, before anything is trained or written."""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from lr2ppo.config.schema import DataConfig, ModelConfig, PointwiseConfig, RewardConfig, RunConfig
from lr2ppo.data.annotations import Need, graded
from lr2ppo.data.dataset import ClipDataset, open_dataset
from lr2ppo.data.features.encoders import encoding_differences, read_features_file
from lr2ppo.data.features.names import found_in
from lr2ppo.data.features.store import FeatureStore
from lr2ppo.data.validate import GIVE_OTHER_IDS, LEAVE_OUT, CheckedClips, check_values, disagreements
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import FAULTS_SHOWN, UserError, raise_faults
from lr2ppo.files import file_fingerprint
from lr2ppo.models.weights import describe_model

C = TypeVar("C", bound=RunConfig)


@dataclass(frozen=True)
class Inputs:
    """The opened datasets, and fingerprints of all that was read: equal where it is equal, on any machine."""

    datasets: list[ClipDataset]
    fingerprints: dict[str, str]


def open_inputs(
    data: DataConfig,
    files: Mapping[str, tuple[str, Need]],
    store: FeatureStore,
    model: ModelConfig,
    processes: Processes,
) -> Inputs:
    """Open the datasets of annotation files, and check once that all their features are finite.

    `files` are in `data.root`, by what they are for, with what every clip must have. Clips with faults are left out if
    `data.strict` is false. Raises `UserError` on every process if a file cannot be used, if no clip of a file remains
    or, with `data.strict` true, if a clip or feature cannot be used or two files disagree about a clip.
    """
    # Before and after they are read: what is read is then what the fingerprints name.
    annotations = {key: _fingerprint(data.root / name) for key, (name, _) in files.items()}
    datasets = [open_dataset(data, name, need, store, model) for name, need in files.values()]
    for key, before in annotations.items():
        path = data.root / files[key][0]
        if before is None or _fingerprint(path) != before:
            raise UserError(f"{path}: changed while it was read; run the same command again")
    names = [name for name, _ in files.values()]
    differing = disagreements({name: dataset.clips for name, dataset in zip(names, datasets, strict=True)})
    if data.strict:
        raise_faults(data.root, [str(fault) for fault in differing], f"{GIVE_OTHER_IDS}, {LEAVE_OUT}")
    checked = CheckedClips(store)
    # Another run may save more at this moment: all processes must share the same clips.
    checked.fingerprints = processes.gather(checked.fingerprints)[0]
    unread = checked.missing({clip.id: clip for dataset in datasets for clip in dataset.clips}.values())
    share = unread[processes.rank :: processes.world_size]
    progress = tqdm(
        share, desc="checking the features", unit="clip", leave=False, disable=None if processes.is_main else True
    )
    shares = processes.gather(check_values(progress, store))
    faults = [*differing, *(fault for found, _ in shares for fault in found)]
    kept = [dataset.without(faults) for dataset in datasets]
    if data.strict or not all(map(len, kept)):
        advice = f"extract these features again, {LEAVE_OUT if data.strict else 'no other clip is in one of the files'}"
        raise_faults(", ".join(map(str, store.paths)), [str(fault) for fault in faults], advice)
    found = checked.fingerprints | {clip: own for _, fingerprints in shares for clip, own in fingerprints.items()}
    if unread and processes.is_main:
        checked.add(found)
    read = {key: fingerprint for key, fingerprint in annotations.items() if fingerprint is not None}
    return Inputs(kept, read | {"features": _features_fingerprint(kept, found)})


def _fingerprint(path: Path) -> str | None:
    """The fingerprint of a file; None if it cannot be read, which its reader explains."""
    try:
        return file_fingerprint(path)
    except OSError:
        return None


def _features_fingerprint(datasets: Sequence[ClipDataset], fingerprints: Mapping[str, str]) -> str:
    """One fingerprint of the features of all clips."""
    clips = sorted({clip.id for dataset in datasets for clip in dataset.clips})
    return hashlib.sha256(json.dumps([(clip, fingerprints[clip]) for clip in clips]).encode()).hexdigest()


def resolve_model(config: C, sources: Mapping[str, Path], store: FeatureStore) -> tuple[C, ModelConfig]:
    """Fill in the model's shape; return the config and the shape, which in stage 3 is that of the source ranker.

    Raises `UserError` if a model that the run starts from was trained on other features.
    """
    for folder in sources.values():
        _, shape = describe_model(folder / "best")
        check_fit(shape, store, config.data.frames, str(folder))
    shape = (
        complete_model_config(config.model, store, config.data.frames)
        if isinstance(config, PointwiseConfig | RewardConfig)
        else describe_model(sources["ranker"] / "best")[1]
    )
    filled_in = {"model": shape} if "model" in type(config).model_fields else {}
    return config.model_copy(update=filled_in), shape


def check_encoders(sources: Iterable[Path], store: FeatureStore) -> str:
    """Compare the encoders of a store's features with those that runs were trained on.

    Returns a warning, empty if all or none of them name their encoders. Raises `UserError` if two differ.
    """
    encodings = {str(store.paths[0]): store.encoding}
    encodings |= {str(folder): read_features_file(folder) for folder in sources}
    known = {place: encoding for place, encoding in encodings.items() if encoding is not None}
    # Every pair: earlier versions name less, and two that agree with such a one may differ.
    for first, place in combinations(known, 2):
        if differences := encoding_differences(known[first], known[place]):
            raise UserError(
                f"{place}: was trained on features of other encoders than {first}: found {'; '.join(differences)}; "
                "give the features that it was trained on (data.root, data.features), or another run"
            )
    unknown = [place for place in encodings if place not in known]
    if not known or not unknown:
        return ""
    return f"warning: {', '.join(unknown)}: the features name no encoders; cannot check that they are the same"


def complete_model_config(model: ModelConfig, store: FeatureStore, frames: int) -> ModelConfig:
    """Fill in what depends on the features: their widths, tokens per frame, and the flatten head's frame count."""
    found = {
        "text_width": store.text_width,
        "image_width": store.image_width,
        "tokens_per_frame": store.tokens_per_frame,
        "frames": frames * store.tokens_per_frame,
    }
    return model.model_copy(update=found)


def check_fit(model: ModelConfig, store: FeatureStore, frames: int, source: str) -> None:
    """Raise `UserError` if a store's features, with `frames` frames per clip, do not fit a model."""
    mismatches = model.mismatches(
        text_width=store.text_width,
        image_width=store.image_width,
        tokens_per_frame=store.tokens_per_frame,
        frames=frames,
    )
    if mismatches:
        raise UserError(
            f"{source}: features do not fit its model: found {'; '.join(mismatches)} ({store.paths[0]}, "
            f"data.frames={frames}); give the features and data.frames that it was trained on"
        )


def has_order(dataset: ClipDataset) -> bool:
    """Whether a clip has labels of different grades; else every order is as good."""
    return any(len(np.unique(graded(clip))) > 1 for clip in dataset.clips)


def check_selects(validation: ClipDataset, path: Path) -> None:
    """Raise `UserError` if the validation clips cannot select the best weights, as every order is as good."""
    if not has_order(validation):
        raise UserError(
            f"{path}: found no clip with labels of different grades, wanted at least one, to select the best weights"
        )


def clip_warnings(train: ClipDataset, validation: ClipDataset, trained_on: Collection[str]) -> list[str]:
    """Return warnings about a run's clips; those of the ids `trained_on` are trained on by it or a run before it."""
    shared = found_in([clip.id for clip in validation.clips], trained_on)
    note = [f"{len(shared)} of the validation clips are trained on, such as {shared[0]}"] if shared else []
    return note + left_out_warnings(train, validation)


def left_out_warnings(*datasets: ClipDataset) -> list[str]:
    """Return a warning about clips left out for faults, if there are some."""
    names = list(dict.fromkeys(name for dataset in datasets for name in dataset.left_out))
    if not names:
        return []
    more = f" and {len(names) - FAULTS_SHOWN} more" if len(names) > FAULTS_SHOWN else ""
    shown = f"{', '.join(names[:FAULTS_SHOWN])}{more}"
    return [f"left out for faults (listed by sh scripts/check_data.sh): {len(names)} clips, {shown}"]
