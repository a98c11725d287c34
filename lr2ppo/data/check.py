"""Checks of clips and their features that every stage makes before it trains."""

import json
from collections.abc import Iterable

import numpy as np

from lr2ppo.data.annotations import Clip, ClipFault
from lr2ppo.data.feature_layout import DAMAGE
from lr2ppo.data.features import FeatureStore
from lr2ppo.errors import UserError
from lr2ppo.files import write_json

LEAVE_OUT = "or leave such clips out with data.strict=false"


def structure_faults(
    clips: Iterable[Clip], store: FeatureStore, least_tokens: int = 1, most_tokens: int | None = None
) -> list[ClipFault]:
    """Clips without features, or whose features have other labels, widths or, where limited, numbers of text tokens."""
    faults = []
    for clip in clips:
        if fault := _structure_fault(clip, store, least_tokens, most_tokens):
            faults.append(ClipFault(clip.id, fault))
    return faults


def _structure_fault(clip: Clip, store: FeatureStore, least_tokens: int, most_tokens: int | None) -> str | None:
    if clip.id not in store:
        return "has no features"
    try:
        features = store.shape(clip.id)
    except ValueError as fault:
        return str(fault)
    widths = (features.text_width, features.image_width)
    if features.labels != len(clip.labels):
        return f"found features of {features.labels} labels, wanted {len(clip.labels)}"
    if features.frames == 0:
        return "has features of no frame, wanted at least one"
    if widths != (store.text_width, store.image_width):
        return f"found feature widths {widths}, others have {store.text_width, store.image_width}"
    if features.tokens < least_tokens:
        return f"found {features.tokens} text tokens, the model takes {least_tokens} and more"
    if most_tokens is not None and features.tokens > most_tokens:
        return f"found {features.tokens} text tokens, the model takes {most_tokens}"
    return None


def value_faults(clips: Iterable[Clip], store: FeatureStore) -> list[ClipFault]:
    """Clips of which a feature is not finite or cannot be read; reads all their features."""
    return [ClipFault(clip.id, fault) for clip in clips for fault in _value_faults(clip, store)]


def _value_faults(clip: Clip, store: FeatureStore) -> list[str]:
    try:
        text, lengths = store.text(clip.id, range(len(clip.labels)))
        frames = store.frames(clip.id)
    except DAMAGE as error:
        return [f"its features cannot be read: {error}"]
    faults = []
    wrong = [length for length in lengths.tolist() if not 1 <= length <= text.shape[1]]
    if wrong:
        faults.append(f"text_len: found {wrong[0]}, wanted 1 to the number of tokens")
    bad = [label for label, row in zip(clip.labels, text, strict=True) if not np.isfinite(row).all()]
    if bad:
        faults.append(f"text features of {', '.join(map(repr, bad[:3]))} are not finite")
    if not np.isfinite(frames).all():
        faults.append("frame features are not finite")
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
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            self._ids = set()

    def missing(self, clips: Iterable[Clip]) -> list[Clip]:
        """Those of the clips that are yet to be checked."""
        return [clip for clip in clips if clip.id not in self._ids]

    def add(self, clips: Iterable[Clip]) -> None:
        self._ids |= {clip.id for clip in clips}
        try:
            write_json(self._path, {"files": self._files, "clips": sorted(self._ids)})
        except UserError:
            # A folder that cannot be written to costs another check next time, nothing more.
            return


def overlap(first: Iterable[Clip], second: Iterable[Clip]) -> list[str]:
    """Ids of the clips that are in both, sorted."""
    return sorted({clip.id for clip in first} & {clip.id for clip in second})
