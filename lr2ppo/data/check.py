"""Checks of clips and their features that every stage makes before it trains."""

import json
from collections.abc import Iterable

import numpy as np

from lr2ppo.data.annotations import Clip
from lr2ppo.data.features import FeatureStore
from lr2ppo.files import write_json


def structure_faults(clips: Iterable[Clip], store: FeatureStore, most_tokens: int | None = None) -> list[str]:
    """Clips without features, or whose features have other labels, widths or, where limited, too many text tokens."""
    faults = []
    for clip in clips:
        if clip.id not in store:
            faults.append(f"clip {clip.id}: has no features")
            continue
        try:
            features = store.shape(clip.id)
        except ValueError as fault:
            faults.append(f"clip {clip.id}: {fault}")
            continue
        widths = (features.text_width, features.image_width)
        if features.labels != len(clip.labels):
            faults.append(f"clip {clip.id}: found features of {features.labels} labels, wanted {len(clip.labels)}")
        elif features.frames == 0:
            faults.append(f"clip {clip.id}: has features of no frame, wanted at least one")
        elif widths != (store.text_width, store.image_width):
            faults.append(
                f"clip {clip.id}: found feature widths {widths}, others have {store.text_width, store.image_width}"
            )
        elif most_tokens is not None and features.tokens > most_tokens:
            faults.append(f"clip {clip.id}: found {features.tokens} text tokens, the model takes {most_tokens}")
    return faults


def value_faults(clips: Iterable[Clip], store: FeatureStore) -> list[str]:
    """Clips of which a feature is not finite or cannot be read; reads all their features."""
    faults = []
    for clip in clips:
        try:
            text, _ = store.text(clip.id, range(len(clip.labels)))
            frames = store.frames(clip.id)
        except OSError as error:
            faults.append(f"clip {clip.id}: its features cannot be read: {error}")
            continue
        bad = [label for label, row in zip(clip.labels, text, strict=True) if not np.isfinite(row).all()]
        if bad:
            faults.append(f"clip {clip.id}: text features of {', '.join(map(repr, bad[:3]))} are not finite")
        if not np.isfinite(frames).all():
            faults.append(f"clip {clip.id}: frame features are not finite")
    return faults


class SoundClips:
    """Which clips' features were read and found finite: kept beside the feature file while that does not change."""

    def __init__(self, store: FeatureStore) -> None:
        self._path = store.paths[0].with_name(f".{store.paths[0].name}.checked.json")
        stats = [(path.name, path.stat()) for path in store.paths]
        self._files = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
            self._ids = set(known["clips"]) if known["files"] == self._files else set()
        except (OSError, ValueError, KeyError, TypeError):
            self._ids = set()

    def missing(self, clips: Iterable[Clip]) -> list[Clip]:
        """Those of the clips that are yet to be checked."""
        return [clip for clip in clips if clip.id not in self._ids]

    def add(self, clips: Iterable[Clip]) -> None:
        self._ids |= {clip.id for clip in clips}
        try:
            write_json(self._path, {"files": self._files, "clips": sorted(self._ids)})
        except OSError:
            # A folder that cannot be written to costs another check next time, nothing more.
            return


def overlap(first: Iterable[Clip], second: Iterable[Clip]) -> list[str]:
    """Ids of the clips that are in both, sorted."""
    return sorted({clip.id for clip in first} & {clip.id for clip in second})
