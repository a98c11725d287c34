"""Check data: single clips and their features, as every stage does, and a whole data folder.

A check of clips returns their faults and leaves the rest to the caller. The check of a folder prints a summary and
returns the faults that prevent training; it is also a command.
"""

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lr2ppo.data import annotations
from lr2ppo.data.annotations import SPELL_ALIKE, Clip, ClipFault, Need, read_valid_clips
from lr2ppo.data.features.hdf5 import HDF5_ERRORS
from lr2ppo.data.features.names import as_seen
from lr2ppo.data.features.store import FeatureStore, find_feature_files
from lr2ppo.data.frames import frames_fingerprint, missing_frames, unusable_frames
from lr2ppo.errors import UserError, path_errors_as_user_errors, raise_faults
from lr2ppo.files import read_json, user_cache, write_json
from lr2ppo.terminal import say

NEEDS: dict[str, Need] = {
    annotations.SOURCE_TRAIN: "grades",
    annotations.TARGET_PAIRS: "pairs",
    annotations.TARGET_TRAIN: "labels",
    annotations.VALIDATION: "grades",
    annotations.TEST: "grades",
}
# These two share clips on purpose: the annotated pairs belong to target clips.
SAME_CLIPS = {annotations.TARGET_PAIRS, annotations.TARGET_TRAIN}
# These may share clips too, if one domain serves all three stages.
TRAINING = {annotations.SOURCE_TRAIN, *SAME_CLIPS}
GIVE_OTHER_IDS = "make them equal, or give different clips different ids"
LEAVE_OUT = "or leave such clips out with data.strict=false"


def overlap(first: Iterable[Clip], second: Iterable[Clip]) -> list[str]:
    """Ids of the clips in both, sorted."""
    return sorted({clip.id for clip in first} & {clip.id for clip in second})


def disagreements(files: Mapping[str, Sequence[Clip]]) -> list[ClipFault]:
    """Faults of clips that two annotation files have with different contents, or with ids that only look the same."""
    known: dict[str, tuple[str, Clip]] = {}
    faults = []
    for name, clips in files.items():
        for clip in clips:
            first, other = known.setdefault(as_seen(clip.id), (name, clip))
            if other.id != clip.id:
                faults.append(
                    ClipFault(clip.id, f"in {name}, it looks like clip {other.id!a} of {first}, {SPELL_ALIKE}")
                )
                continue
            contents = {
                "labels": (other.labels, clip.labels),
                "descriptions": (other.description, clip.description),
                "frames": (other.images, clip.images),
            }
            differing = [what for what, (one, another) in contents.items() if one != another]
            if differing:
                faults.append(ClipFault(clip.id, f"{first} and {name} have it with different {', '.join(differing)}"))
    return faults


def structure_faults(clips: Iterable[Clip], store: FeatureStore, max_tokens: int | None = None) -> list[ClipFault]:
    """Faults of clips without features, or with the wrong number of labels, widths or more than `max_tokens` tokens."""
    faults = []
    for clip in clips:
        if fault := _structure_fault(clip, store, max_tokens):
            faults.append(ClipFault(clip.id, fault))
    return faults


def _structure_fault(clip: Clip, store: FeatureStore, max_tokens: int | None) -> str | None:
    if clip.id not in store:
        return "has no features"
    try:
        features = store.shape(clip.id)
    except ValueError as fault:
        return str(fault)
    widths = (features.text_width, features.image_width)
    if features.labels != len(clip.labels):
        return f"found features of {features.labels} labels, wanted {len(clip.labels)}"
    if changed := _source_fault(clip, store, features.frames):
        return changed
    if widths != store.widths(clip.id):
        return f"found feature widths {widths}, others have {store.widths(clip.id)}"
    if features.tokens == 0:
        return "has features without text tokens, wanted at least one"
    if max_tokens is not None and features.tokens > max_tokens:
        return f"found {features.tokens} text tokens, the model takes {max_tokens}"
    return None


def _source_fault(clip: Clip, store: FeatureStore, frames: int) -> str | None:
    """How a clip differs from what its features were made from, as far as the file says that; reads no pictures."""
    sources = store.sources(clip.id)
    if sources is None:
        return None
    if sources.text != clip.text_fingerprint():
        return "has features of other labels, or of another description"
    if frames != len(clip.images):
        return f"has features of {frames} frames, but names {len(clip.images)}"
    if sources.images not in (None, clip.images_fingerprint()):
        return "has features of other frames than it names"
    return None


@path_errors_as_user_errors()
def changed_frames(clips: Iterable[Clip], store: FeatureStore, frames_root: Path) -> list[ClipFault]:
    """Faults of clips whose frames are all there, but are not what their features were made from.

    Frames that cannot be used are not read; `unusable_frames` names them.
    """
    faults = []
    for clip in clips:
        sources = store.sources(clip.id)
        if sources is None or missing_frames([clip], frames_root) or unusable_frames([clip], frames_root):
            continue
        if frames_fingerprint(clip, frames_root) != sources.frames:
            faults.append(ClipFault(clip.id, "its frames have changed since its features were made"))
    return faults


def check_values(clips: Iterable[Clip], store: FeatureStore) -> tuple[list[ClipFault], dict[str, str]]:
    """Read all features of clips: the faults of those that are not finite or not readable, others' fingerprints by id.

    A fingerprint is equal where the features are, in any file.
    """
    faults: list[ClipFault] = []
    fingerprints = {}
    for clip in clips:
        found, fingerprint = _check_values(clip, store)
        faults += [ClipFault(clip.id, fault) for fault in found]
        if not found:
            fingerprints[clip.id] = fingerprint
    return faults, fingerprints


def _check_values(clip: Clip, store: FeatureStore) -> tuple[list[str], str]:
    try:
        text, lengths = store.text(clip.id, range(len(clip.labels)))
        spans = store.label_spans(clip.id, np.arange(len(clip.labels)), lengths)
        frames = store.frames(clip.id)
    except HDF5_ERRORS as error:
        return [f"its features cannot be read: {error}"], ""
    faults = []
    wrong = [length for length in lengths.tolist() if not 1 <= length <= text.shape[1]]
    if wrong:
        faults.append(f"text_len: found {wrong[0]}, wanted 1 to the number of tokens")
    elif ((spans[:, 0] < 0) | (spans[:, 0] >= spans[:, 1]) | (spans[:, 1] > lengths)).any():
        faults.append("label_span: wanted a start and a stop within each label's tokens")
    bad = [label for label, row in zip(clip.labels, text, strict=True) if not np.isfinite(row).all()]
    if bad:
        faults.append(f"text features of {', '.join(map(repr, bad[:3]))} are not finite")
    if not np.isfinite(frames).all():
        faults.append("frame features are not finite")
    digest = hashlib.sha256()
    for array in (text, lengths, spans, frames):
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return faults, digest.hexdigest()[:16]


class CheckedClips:
    """The clips whose features were found finite, with their fingerprints: saved in the user's cache.

    They are valid until a feature file changes. A record beside the features could come from the same stranger.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._files = [
            [os.path.realpath(path), *identity] for path, identity in zip(store.paths, store.identities, strict=True)
        ]
        cache = user_cache()
        names = json.dumps([path for path, *_ in self._files])
        name = hashlib.sha256(names.encode()).hexdigest()[:32]
        self._path = None if cache is None else cache / "checked" / f"{name}.json"
        self.fingerprints: dict[str, str] = {}
        if self._path is None:
            return
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
            known = read_json(self._path)
            if known["files"] == self._files:
                self.fingerprints = dict(known["fingerprints"])

    def missing(self, clips: Iterable[Clip]) -> list[Clip]:
        """The clips that are not yet checked."""
        return [clip for clip in clips if clip.id not in self.fingerprints]

    def add(self, fingerprints: Mapping[str, str]) -> None:
        """Add and save the fingerprints of checked clips, by id; raises `UserError` if their file changed meanwhile."""
        self._store.check_unchanged()
        self.fingerprints |= fingerprints
        if self._path is None:
            return
        # Without a cache they are only checked again next time.
        with contextlib.suppress(UserError):
            write_json(self._path, {"files": self._files, "fingerprints": self.fingerprints})


def read_splits(root: Path, faults: list[str]) -> dict[str, list[Clip]]:
    """The valid clips of each annotation file that has any; faults of the others are added to `faults`."""
    splits = {}
    for name, need in NEEDS.items():
        try:
            clips, found = read_valid_clips(root / name, need)
        except UserError as error:
            faults.append(str(error))
            continue
        faults += [f"{name}: {fault}" for fault in found]
        if clips:
            splits[name] = clips
    return splits


def check_folder(
    splits: Mapping[str, Sequence[Clip]], root: Path, features: Sequence[str], frames_root: Path
) -> list[str]:
    """Print a summary of a folder in LRMovieNet's layout; returns the faults that prevent training."""
    for name, clips in splits.items():
        say(f"{name}\n    {describe_clips(clips)}")
        warn_about_pairs(name, clips)
    for (first, clips), (second, others) in combinations(splits.items(), 2):
        shared = overlap(clips, others)
        if shared and {first, second} != SAME_CLIPS:
            kind = "note" if {first, second} <= TRAINING else "warning"
            say(f"{kind}: {first} and {second} share {len(shared):,} clips, such as {shared[0]}")
    faults = [f"{fault}; {GIVE_OTHER_IDS}" for fault in disagreements(splits)]
    try:
        store = FeatureStore(find_feature_files(root, features))
        return faults + check_features(splits, store, frames_root)
    except UserError as error:
        return [*faults, str(error)]


def check_features(splits: Mapping[str, Sequence[Clip]], store: FeatureStore, frames_root: Path) -> list[str]:
    """Print a summary of the clips' features; returns their faults."""
    found = {name: structure_faults(clips, store) for name, clips in splits.items()}
    faulty = {fault.clip for faults in found.values() for fault in faults}
    readable = [clip for clip in unique_clips(splits) if clip.id not in faulty]
    if readable:
        say(f"{', '.join(path.name for path in store.paths)}\n    {describe_store(store, readable)}")
    checked = CheckedClips(store)
    unread = checked.missing(readable)
    bad, fingerprints = check_values(tqdm(unread, desc="reading all features", unit="clip", disable=None), store)
    checked.add(fingerprints)
    progress = tqdm(readable, desc="comparing the frames", unit="clip", disable=None)
    bad += changed_frames(progress, store, frames_root)
    return [f"{name}: {fault}" for name, faults in found.items() for fault in faults] + [str(fault) for fault in bad]


def check_frames(splits: Mapping[str, Sequence[Clip]], frames_root: Path) -> list[str]:
    """Print how many frames are missing, which training does not need; returns the faults of the others."""
    clips = unique_clips(splits)
    missing = missing_frames(clips, frames_root)
    if missing:
        say(
            f"warning: {len(missing):,} of {sum(len(clip.images) for clip in clips):,} frames are not under "
            f"{frames_root}, such as {missing[0]}; training reads only the features"
        )
    progress = tqdm(clips, desc="reading the frames' headers", unit="clip", disable=None)
    return [str(fault) for fault in unusable_frames(progress, frames_root)]


def warn_about_pairs(name: str, clips: Iterable[Clip]) -> None:
    """Warn if pairs contradict the grades; they may, since they are separate judgements."""
    for clip in clips:
        if clip.grades is not None and len(clip.pairs) and (np.diff(clip.grades[clip.pairs]) >= 0).any():
            say(f"warning: {name} has pairs whose first label has no higher grade, as in clip {clip.id}")
            return


def unique_clips(splits: Mapping[str, Sequence[Clip]]) -> list[Clip]:
    """The clips of all files, each id once."""
    return list({clip.id: clip for clips in splits.values() for clip in clips}.values())


def describe_clips(clips: Sequence[Clip]) -> str:
    """Count clips, labels, grades and pairs, as one line."""
    labels = [len(clip.labels) for clip in clips]
    parts = [f"{len(clips):,} clips", f"{sum(labels):,} labels, {min(labels)} to {max(labels)} a clip"]
    grades = Counter(grade for clip in clips if clip.grades is not None for grade in clip.grades.tolist())
    if grades:
        parts.append("grades " + ", ".join(f"{grade}: {grades[grade]:,}" for grade in sorted(grades)))
    if pairs := sum(len(clip.pairs) for clip in clips):
        parts.append(f"{pairs:,} pairs")
    return "; ".join(parts)


def describe_store(store: FeatureStore, clips: Iterable[Clip]) -> str:
    """The store's widths, and its clips' text tokens and frames, as one line."""
    shapes = [store.shape(clip.id) for clip in clips]
    text = f"text of up to {max(shape.tokens for shape in shapes)} tokens x {store.text_width}"
    frames = f"{min(shape.frames for shape in shapes)} to {max(shape.frames for shape in shapes)} frames a clip"
    per_frame = f"{store.tokens_per_frame} token{'s' * (store.tokens_per_frame > 1)} a frame x {store.image_width}"
    return f"{text}; {frames}, {per_frame}"


def require_valid(root: Path, features: Sequence[str], frames_root: Path) -> None:
    """Print a summary of a folder in LRMovieNet's layout; raises `UserError` naming its faults and its frames'."""
    # Unlike that of pathlib, it is also False for a path that cannot be looked up.
    if not os.path.isdir(root):
        raise UserError(f"{root}: no such folder; give one in LRMovieNet's layout")
    faults: list[str] = []
    splits = read_splits(root, faults)
    faults += check_folder(splits, root, features, frames_root)
    frame_faults = check_frames(splits, frames_root)
    advice = "training cannot start yet" if faults else "training can start, but these frames cannot be encoded"
    raise_faults(root, [*faults, *frame_faults], advice)
