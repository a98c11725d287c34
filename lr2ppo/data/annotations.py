"""Annotation files in LRMovieNet's layout: a JSON list of clips with labels, grades and, in one file, pairs."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lr2ppo.errors import UserError, raise_faults

SOURCE_TRAIN = "first_stage_data.json"
TARGET_PAIRS = "first_second_data_pair/first_second_data_pair_10pct.json"
TARGET_TRAIN = "first_second_stage_data.json"
VALIDATION = "val_data.json"
TEST = "test_data.json"
# Ungraded pictures with captions, for pretraining tiny encoders; not part of LRMovieNet.
CAPTIONS = "pretrain_data.json"

HIGHEST_GRADE = 2

Need = Literal["labels", "grades", "pairs", "images"]


@dataclass(frozen=True)
class Clip:
    """One clip: `grades [labels]` (None where ungraded), `pairs [pairs, 2]` of label positions (better, worse)."""

    id: str
    labels: tuple[str, ...]
    grades: NDArray[np.int64] | None = None
    description: str = ""
    filename: str = ""
    images: tuple[str, ...] = ()
    pairs: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))


def read_clips(path: Path, need: Need = "labels") -> list[Clip]:
    """Read an annotation file; `need` is what the reader cannot do without (labels alone may lack grades).

    Raises `UserError` listing the file's faults, all of them up to a screenful.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file; check data.root and the file's name") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is not JSON: {error}") from None
    if not isinstance(entries, list) or not entries:
        found = "an empty list" if isinstance(entries, list) else type(entries).__name__
        raise UserError(f"{path}: found {found}, wanted a JSON list of clips")

    clips: list[Clip] = []
    faults: list[str] = []
    seen: set[str] = set()
    for position, entry in enumerate(entries):
        try:
            clip = _parse_clip(entry, need)
            if clip.id in seen:
                raise ValueError("a second clip of the same id")
            seen.add(clip.id)
            clips.append(clip)
        except ValueError as fault:
            name = entry.get("id", "without id") if isinstance(entry, dict) else "not a mapping"
            faults.append(f"clip {position} ({name}): {fault}")
    raise_faults(path, faults, "mend or remove them")
    return clips


def write_clips(path: Path, clips: Iterable[Clip]) -> None:
    """Write an annotation file; grades and pairs only where a clip has them."""
    entries = []
    for clip in clips:
        grades: Sequence[Any] = [None] * len(clip.labels) if clip.grades is None else clip.grades.tolist()
        tags = [
            {"tag": label} if grade is None else {"tag": label, "target": grade}
            for label, grade in zip(clip.labels, grades, strict=True)
        ]
        entry: dict[str, Any] = {"id": clip.id, "tags": tags, "description": clip.description}
        entry |= {"filename": clip.filename, "image": list(clip.images)}
        if len(clip.pairs):
            entry["index"] = clip.pairs.tolist()
        entries.append(entry)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def graded(clip: Clip) -> NDArray[np.int64]:
    """A clip's grades; raises ValueError where it has none."""
    if clip.grades is None:
        raise ValueError(f"clip {clip.id} has no grades")
    return clip.grades


def _parse_clip(entry: Any, need: Need) -> Clip:
    """Raises ValueError with the clip's first fault."""
    if not isinstance(entry, dict):
        raise ValueError(f"found {type(entry).__name__}, wanted a mapping")
    clip_id = entry.get("id")
    if not isinstance(clip_id, str) or not clip_id:
        raise ValueError(f"id: found {clip_id!r}, wanted a text")
    tags = entry.get("tags")
    if not isinstance(tags, list) or not all(isinstance(tag, dict) and isinstance(tag.get("tag"), str) for tag in tags):
        raise ValueError('tags: wanted a list of {"tag": text, "target": grade}')
    if not tags and need != "images":
        raise ValueError("tags: found no labels, wanted at least one")
    images = entry.get("image") or []
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ValueError("image: wanted a list of paths")
    if not images and need == "images":
        raise ValueError("image: found no frames, wanted at least one path")
    pairs = _parse_pairs(entry.get("index"), len(tags))
    if not len(pairs) and need == "pairs":
        raise ValueError("index: found no pairs, wanted a list of [better, worse]")
    return Clip(
        id=clip_id,
        labels=tuple(tag["tag"] for tag in tags),
        grades=_parse_grades(tags, required=need == "grades"),
        description=str(entry.get("description") or ""),
        filename=str(entry.get("filename") or ""),
        images=tuple(images),
        pairs=pairs,
    )


def _parse_grades(tags: Sequence[dict[str, Any]], required: bool) -> NDArray[np.int64] | None:
    targets: list[Any] = [tag.get("target") for tag in tags]
    if not required and all(target is None for target in targets):
        return None
    grades = []
    for tag, target in zip(tags, targets, strict=True):
        try:
            grade = float(target)
        except (TypeError, ValueError, OverflowError):
            grade = float("nan")
        if isinstance(target, bool) or grade not in range(HIGHEST_GRADE + 1):
            raise ValueError(f"target of label {tag['tag']!r}: found {target!r}, wanted 0, 1 or 2")
        grades.append(int(grade))
    return np.array(grades, dtype=np.int64)


def _parse_pairs(index: Any, labels: int) -> NDArray[np.int64]:
    if index is None or index == []:
        return np.empty((0, 2), dtype=np.int64)
    if not isinstance(index, list):
        raise ValueError("index: wanted a list of [better, worse]")
    for pair in index:
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(position) is int for position in pair)
        if not whole or not all(0 <= position < labels for position in pair) or pair[0] == pair[1]:
            raise ValueError(f"index: found {pair!r}, wanted two different positions below {labels}")
    return np.array(index, dtype=np.int64)
