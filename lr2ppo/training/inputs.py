"""What a stage reads, opened and checked against the model before anything is trained or written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from lr2ppo.config.schema import DataConfig, ModelConfig, PointwiseConfig, RewardConfig, RunConfig
from lr2ppo.data.annotations import Need
from lr2ppo.data.dataset import ClipDataset, open_dataset
from lr2ppo.data.features.store import FeatureStore
from lr2ppo.data.validate import LEAVE_OUT, CheckedClips, overlap, value_faults
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import FAULTS_SHOWN, UserError, raise_faults
from lr2ppo.models.weights import describe_model

C = TypeVar("C", bound=RunConfig)


def open_inputs(
    data: DataConfig, files: Sequence[tuple[str, Need]], store: FeatureStore, model: ModelConfig, processes: Processes
) -> list[ClipDataset]:
    """The datasets of some annotation files, every feature of theirs read once and found finite.

    Clips at fault are left out where `data.strict` is false. Raises `UserError` on every process where a file cannot be
    used, where a clip or a feature cannot and `data.strict` is true, or where no clip of a file remains.
    """
    datasets = [open_dataset(data, file, need, store, model) for file, need in files]
    checked = CheckedClips(store)
    unread = checked.missing({clip.id: clip for dataset in datasets for clip in dataset.clips}.values())
    share = unread[processes.rank :: processes.world_size]
    progress = tqdm(
        share, desc="checking the features", unit="clip", leave=False, disable=None if processes.is_main else True
    )
    faults = [fault for found in processes.gather(value_faults(progress, store)) for fault in found]
    kept = [dataset.without(faults) for dataset in datasets]
    if data.strict or not all(map(len, kept)):
        advice = f"extract these features again, {LEAVE_OUT if data.strict else 'no other clip is in one of the files'}"
        raise_faults(", ".join(map(str, store.paths)), [str(fault) for fault in faults], advice)
    if unread and processes.is_main:
        faulty = {fault.clip for fault in faults}
        checked.add(clip for clip in unread if clip.id not in faulty)
    return kept


def resolve_model(config: C, sources: Mapping[str, Path], store: FeatureStore) -> tuple[C, ModelConfig]:
    """The config with the model's shape filled in, and that shape; of stage 3 it is that of the ranker it starts from.

    Raises `UserError` where a model that the run starts from was made for other features.
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


def complete_model_config(model: ModelConfig, store: FeatureStore, frames: int) -> ModelConfig:
    """Fill in what the features decide: their widths, tokens a frame, and the flatten head's frame count."""
    found = {
        "text_width": store.text_width,
        "image_width": store.image_width,
        "tokens_per_frame": store.tokens_per_frame,
        "frames": frames * store.tokens_per_frame,
    }
    return model.model_copy(update=found)


def check_fit(model: ModelConfig, store: FeatureStore, frames: int, source: str) -> None:
    """Raises `UserError` where features of a store, `frames` of a clip, are not what a model was made for."""
    misfits = model.misfits(
        text_width=store.text_width,
        image_width=store.image_width,
        tokens_per_frame=store.tokens_per_frame,
        frames=frames,
    )
    if misfits:
        raise UserError(
            f"{source}: features do not fit its model: found {'; '.join(misfits)} ({store.paths[0]}, "
            f"data.frames={frames}); give the features and data.frames that it was trained on"
        )


def note_on(train: ClipDataset, validation: ClipDataset) -> str:
    """Warnings to put behind a sentence about a run's clips; empty where there is nothing to warn of."""
    shared = overlap(train.clips, validation.clips)
    note = f"; warning: {len(shared)} of the validation clips are trained on, such as {shared[0]}" if shared else ""
    return note + left_out_note(train, validation)


def left_out_note(*datasets: ClipDataset) -> str:
    """A warning to put behind a sentence where clips were left out for their faults; else nothing."""
    names = list(dict.fromkeys(name for dataset in datasets for name in dataset.left_out))
    if not names:
        return ""
    more = f" and {len(names) - FAULTS_SHOWN} more" if len(names) > FAULTS_SHOWN else ""
    shown = f"{', '.join(names[:FAULTS_SHOWN])}{more}"
    return f"; warning: left out for faults, which sh scripts/check_data.sh tells: {len(names)} clips, {shown}"
