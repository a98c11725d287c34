"""Is a data folder fit for training? Says what it holds and what is wrong with it, before any stage finds out."""

import argparse
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

from tqdm import tqdm

from lr2ppo.data import annotations
from lr2ppo.data.annotations import Clip, Need, read_clips
from lr2ppo.data.check import SoundClips, overlap, structure_faults, value_faults
from lr2ppo.data.features import FeatureStore, find_feature_files
from lr2ppo.errors import UserError, raise_faults, reports_user_errors

NEEDS: dict[str, Need] = {
    annotations.SOURCE_TRAIN: "grades",
    annotations.TARGET_PAIRS: "pairs",
    annotations.TARGET_TRAIN: "labels",
    annotations.VALIDATION: "grades",
    annotations.TEST: "grades",
}
# These two hold the same clips on purpose: the annotated pairs are of the target clips.
SAME_CLIPS = {annotations.TARGET_PAIRS, annotations.TARGET_TRAIN}


def missing_frames(clips: Iterable[Clip], frames_root: Path) -> list[str]:
    """Paths of the clips' frames that lead to no file."""
    return [image for clip in clips for image in clip.images if not (frames_root / image).is_file()]


def describe_clips(clips: Sequence[Clip]) -> str:
    """How many clips, labels, grades and pairs there are."""
    labels = [len(clip.labels) for clip in clips]
    parts = [f"{len(clips):,} clips", f"{sum(labels):,} labels, {min(labels)} to {max(labels)} a clip"]
    grades = Counter(grade for clip in clips if clip.grades is not None for grade in clip.grades.tolist())
    if grades:
        parts.append("grades " + ", ".join(f"{grade}: {grades[grade]:,}" for grade in sorted(grades)))
    if pairs := sum(len(clip.pairs) for clip in clips):
        parts.append(f"{pairs:,} pairs")
    return "; ".join(parts)


def describe_store(store: FeatureStore, clips: Iterable[Clip]) -> str:
    """The store's widths, and its clips' text tokens and frames."""
    shapes = [store.shape(clip.id) for clip in clips if clip.id in store]
    text = f"text of up to {max(shape.tokens for shape in shapes)} tokens x {store.text_width}"
    frames = f"{min(shape.frames for shape in shapes)} to {max(shape.frames for shape in shapes)} frames a clip"
    per_frame = f"{store.tokens_per_frame} token{'s' * (store.tokens_per_frame > 1)} a frame x {store.image_width}"
    return f"{text}; {frames}, {per_frame}"


def read_splits(root: Path, faults: list[str]) -> dict[str, list[Clip]]:
    """The clips of each annotation file that can be read; what is wrong with the others is added to `faults`."""
    splits = {}
    for name, need in NEEDS.items():
        try:
            splits[name] = read_clips(root / name, need)
        except UserError as error:
            faults.append(str(error))
    return splits


def check_folder(root: Path, features: Sequence[str], frames_root: Path) -> list[str]:
    """Print what a folder in LRMovieNet's layout holds; returns what keeps training from starting."""
    faults: list[str] = []
    splits = read_splits(root, faults)
    for name, clips in splits.items():
        print(f"{name}\n    {describe_clips(clips)}")
    try:
        store = FeatureStore(find_feature_files(root, features))
    except UserError as error:
        faults.append(str(error))
    else:
        every = list({clip.id: clip for clips in splits.values() for clip in clips}.values())
        faults += check_features(splits, every, store)
    warn_of_frames(splits, frames_root)
    for (first, clips), (second, others) in combinations(splits.items(), 2):
        shared = overlap(clips, others)
        if shared and {first, second} != SAME_CLIPS:
            print(f"warning: {first} and {second} share {len(shared):,} clips, such as {shared[0]}")
    return faults


def check_features(splits: Mapping[str, Sequence[Clip]], every: Sequence[Clip], store: FeatureStore) -> list[str]:
    """Print what the store holds of the clips; returns its faults."""
    faults = [f"{name}: {fault}" for name, clips in splits.items() for fault in structure_faults(clips, store)]
    held = [clip for clip in every if clip.id in store]
    if held:
        print(f"{', '.join(path.name for path in store.paths)}\n    {describe_store(store, held)}")
    fitting = [clip for clip in held if store.shape(clip.id).labels == len(clip.labels)]
    sound = SoundClips(store)
    unread = sound.missing(fitting)
    bad = value_faults(tqdm(unread, desc="reading all features", unit="clip", disable=None), store)
    if not bad:
        sound.add(unread)
    return faults + bad


def warn_of_frames(splits: Mapping[str, Sequence[Clip]], frames_root: Path) -> None:
    """Frames are needed for extraction and pictures alone, so that missing ones stop no training."""
    named = sum(len(clip.images) for clips in splits.values() for clip in clips)
    missing = [image for clips in splits.values() for image in missing_frames(clips, frames_root)]
    if missing:
        print(
            f"warning: {len(missing):,} of {named:,} frames are not under {frames_root}, such as {missing[0]}; "
            "training goes by the features alone"
        )


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: python -m lr2ppo.data.check_folder data/LRMovieNet --frames-root data/MovieNet",
    )
    parser.add_argument("data", type=Path, help="folder with the annotation files and the features")
    parser.add_argument(
        "--features", nargs="+", default=["clean_feat.h5"], help="feature files or patterns (default clean_feat.h5)"
    )
    parser.add_argument("--frames-root", type=Path, help="folder that image paths are relative to (default the data's)")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        raise UserError(f"{arguments.data}: no such folder; give one in LRMovieNet's layout")
    faults = check_folder(arguments.data, arguments.features, arguments.frames_root or arguments.data)
    raise_faults(arguments.data, faults, "training cannot start until they are mended")
    print("training can start")


if __name__ == "__main__":
    main()
