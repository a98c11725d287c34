"""Annotation files in LRMovieNet's layout: a JSON list of clips with labels, grades and, in one file, pairs."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any, Literal, TypeGuard

import numpy as np
from numpy.typing import NDArray

from lr2ppo.data.features.names import as_seen, id_fault, misspelt
from lr2ppo.errors import UserError, advise, raise_faults, shorten_middle
from lr2ppo.files import DECIMAL, UNWRITABLE, read_json, write_json

SOURCE_TRAIN = "first_stage_data.json"
TARGET_PAIRS = "first_second_data_pair/first_second_data_pair_10pct.json"
# Other shares of the pairs of a clip, in percent.
PAIRS_OF_SHARE = "first_second_data_pair/first_second_data_pair_{share}pct.json"
# Clips and pairs a clip, such as 40x5.
PAIRS_OF_REGIME = "first_second_data_pair/first_second_data_pair_{regime}.json"
TARGET_TRAIN = "first_second_stage_data.json"
VALIDATION = "val_data.json"
TEST = "test_data.json"
# Ungraded pictures with captions, for pretraining tiny encoders; not part of LRMovieNet.
CAPTIONS = "pretrain_data.json"

# LRMovieNet grades 0 to 2, most document sets 0 to 4; with the gain 2^grade - 1 larger grades make no sense.
MAX_GRADE = 10
GRADES_WANTED = f"a whole number from 0 to {MAX_GRADE}"

LONGEST_NAME = 100
# Shuffling so many numbers takes 128 MiB.
MOST_SHUFFLED = 2**24
SPELL_ALIKE = "but is spelled otherwise; spell both alike, or give one another name"
# A misspelt one is refused: without it a clip would be another. Other keys may be anything.
ENTRY_KEYS, TAG_KEYS = ("id", "tags", "description", "image"), ("tag", "target")

Need = Literal["labels", "grades", "pairs", "images"]


@dataclass(frozen=True)
class Clip:
    """One clip: `grades [labels]` (None if ungraded), `pairs [pairs, 2]` of label positions (better, worse)."""

    id: str
    labels: tuple[str, ...]
    grades: NDArray[np.int64] | None = None
    description: str = ""
    filename: str = ""
    images: tuple[str, ...] = ()
    pairs: NDArray[np.int64] = field(default_factory=lambda: np.empty((0, 2), dtype=np.int64))

    def text_fingerprint(self) -> str:
        """A fingerprint of the labels, in their order, and the description: of all that text features depend on."""
        return hashlib.sha256(json.dumps([self.labels, self.description]).encode()).hexdigest()[:16]

    def images_fingerprint(self) -> str:
        """A fingerprint of the frames' paths, in their order; of their content, see `frames_fingerprint`."""
        return hashlib.sha256(json.dumps(self.images).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ClipFault:
    """A fault of one clip, named by its id or its position in the annotation file."""

    clip: str
    message: str

    def __str__(self) -> str:
        return f"clip {self.clip}: {self.message}"


def read_clips(path: Path, need: Need = "labels") -> list[Clip]:
    """Read an annotation file; `need` is what every clip must have ("labels" allows clips without grades).

    Raises `UserError` listing the file's faults, up to a screenful.
    """
    clips, faults = read_valid_clips(path, need)
    raise_faults(path, [str(fault) for fault in faults], "fix or remove them")
    return clips


def read_valid_clips(path: Path, need: Need = "labels") -> tuple[list[Clip], list[ClipFault]]:
    """The valid clips of an annotation file, and all faults of the others.

    Raises `UserError` if the file is missing, cannot be read, or is not a JSON list of clips.
    """
    clips: list[Clip] = []
    faults: list[ClipFault] = []
    seen: dict[str, str] = {}
    for position, entry in enumerate(_read_entries(path)):
        clip, found = _parse_clip(entry, need)
        known = seen.get(as_seen(clip.id))
        if known is not None:
            other = f"id: looks like that of clip {known!a}, {SPELL_ALIKE}"
            found.append("a second clip with the same id" if known == clip.id else other)
        if not found:
            seen[as_seen(clip.id)] = clip.id
            clips.append(clip)
        faults += [ClipFault(f"{position} ({_entry_name(entry)})", fault) for fault in found]
    return clips, faults


def _read_entries(path: Path) -> list[Any]:
    """The entries of an annotation file; raises `UserError` if it is not a JSON list."""
    try:
        entries = read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such annotation file; check data.root and the file's name") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read: {error}; save it as UTF-8 text") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {advise(error)}") from None
    except (ValueError, RecursionError) as error:
        # Python refuses numbers of thousands of digits and thousands of nested brackets, which are valid JSON.
        raise UserError(f"{path}: is not JSON: {error}; correct it, or make it again") from None
    if not isinstance(entries, list) or not entries:
        found = "an empty list" if isinstance(entries, list) else type(entries).__name__
        raise UserError(f"{path}: found {found}, wanted a JSON list of clips")
    return entries


def write_clips(path: Path, clips: Iterable[Clip]) -> None:
    """Write an annotation file; clips without grades or pairs have no keys for them.

    Raises `UserError` if it cannot be written.
    """
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
    write_json(path, entries)


def graded(clip: Clip) -> NDArray[np.int64]:
    """A clip's grades; raises ValueError if it has none."""
    if clip.grades is None:
        raise ValueError(f"clip {clip.id} has no grades")
    return clip.grades


def better_worse_pairs(grades: NDArray[np.int64]) -> NDArray[np.int64]:
    """All pairs of positions with different grades, the higher grade first: [pairs, 2], in order of position."""
    return pick_pairs(grades, np.arange(count_pairs(grades)))


def count_pairs(grades: NDArray[np.int64]) -> int:
    """The number of `better_worse_pairs`."""
    return int(_lower_labels(grades).sum())


def pick_pairs(grades: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pairs of these numbers among `better_worse_pairs`, without listing the others: [len(numbers), 2]."""
    ends = np.cumsum(_lower_labels(grades))
    better = np.searchsorted(ends, numbers, side="right")
    # The place of each pair's second label among those with a lower grade than the first.
    places = numbers - np.append(0, ends)[better]
    worse = np.empty_like(better)
    for grade in np.unique(grades[better]):
        own = grades[better] == grade
        worse[own] = np.flatnonzero(grades < grade)[places[own]]
    return np.stack([better, worse], axis=1)


def _lower_labels(grades: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many labels have a lower grade than each: [labels]."""
    return np.searchsorted(np.sort(grades), grades, side="left")


def draw_numbers(total: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Different random numbers below `total`, which is at least `wanted`: [wanted]."""
    if total <= MOST_SHUFFLED:
        return rng.permutation(total)[:wanted]
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < wanted:
        drawn = np.union1d(drawn, rng.integers(total, size=wanted - len(drawn)))
    return rng.permutation(drawn)


def _entry_name(entry: Any) -> str:
    """The name of an entry in messages."""
    if not isinstance(entry, dict):
        return "not a mapping"
    clip_id = entry.get("id", "without id")
    return shorten_middle(clip_id, LONGEST_NAME) if _is_text(clip_id) else shortened(clip_id)


def _is_text(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and not UNWRITABLE.search(value)


def _parse_clip(entry: Any, need: Need) -> tuple[Clip, list[str]]:
    """A clip made of the valid parts of an entry, and the faults of the others."""
    if not isinstance(entry, dict):
        return Clip("", ()), [f"found {type(entry).__name__}, wanted a mapping"]
    faults: list[str] = []
    if near := misspelt(entry, ENTRY_KEYS):
        faults.append(f"found the key {shortened(near[0])}, did you mean {near[1]}?")
    clip_id = entry.get("id")
    if not _is_text(clip_id):
        faults.append(f"id: found {shortened(clip_id)}, wanted a string")
        clip_id = ""
    elif fault := id_fault(clip_id):
        faults.append(f"id: {fault}")
    tags = _parse_tags(entry.get("tags"), need, faults)
    labels = tuple(tag["tag"] for tag in tags)
    grades = _parse_grades(tags, need, faults)
    faults += _label_faults(labels, grades)
    clip = Clip(
        id=clip_id,
        labels=labels,
        grades=grades,
        description=_parse_text(entry, "description", faults),
        filename=_parse_text(entry, "filename", faults),
        images=_parse_images(entry.get("image"), need, faults),
        pairs=_parse_pairs(entry.get("index"), labels, need, faults),
    )
    return clip, faults


def _parse_tags(tags: Any, need: Need, faults: list[str]) -> list[dict[str, Any]]:
    if not isinstance(tags, list) or not all(isinstance(tag, dict) and _is_text(tag.get("tag")) for tag in tags):
        faults.append('tags: wanted a list of {"tag": string, "target": grade}')
        return []
    for tag in tags:
        if near := misspelt(tag, TAG_KEYS):
            faults.append(f"tags: found the key {shortened(near[0])}, did you mean {near[1]}?")
            break
    if not tags and need != "images":
        faults.append("tags: found no labels, wanted at least one")
    return tags


def _label_faults(labels: Sequence[str], grades: NDArray[np.int64] | None) -> list[str]:
    """Faults of labels that look blank, and of labels given twice, as people see them, with different grades."""
    faults = []
    blank = [label for label in labels if not as_seen(label)]
    if blank:
        more = f" (and {len(blank) - 1} more)" if len(blank) > 1 else ""
        faults.append(f"tags: found the label {shortened(blank[0])}, wanted a text{more}")
    seen: dict[str, tuple[str, int]] = {}
    for label, grade in zip(labels, [] if grades is None else grades.tolist(), strict=False):
        known, first = seen.setdefault(as_seen(label), (label, grade))
        if first != grade:
            found = shortened(label) if known == label else f"{known!a} and {label!a}, which look the same,"
            faults.append(f"tags: found {found} with the grades {first} and {grade}, wanted one")
            break
    return faults


def _parse_text(entry: dict[str, Any], key: str, faults: list[str]) -> str:
    text = entry.get(key)
    if text is not None and not _is_text(text):
        faults.append(f"{key}: found {shortened(text)}, wanted a string")
    return text if _is_text(text) else ""


def _parse_images(images: Any, need: Need, faults: list[str]) -> tuple[str, ...]:
    images = images or []
    if not isinstance(images, list) or not all(_is_text(image) for image in images):
        faults.append("image: wanted a list of paths")
        return ()
    if not images and need == "images":
        faults.append("image: found no frames, wanted at least one path")
    return tuple(images)


def _parse_grades(tags: Sequence[dict[str, Any]], need: Need, faults: list[str]) -> NDArray[np.int64] | None:
    targets: list[Any] = [tag.get("target") for tag in tags]
    if need != "grades" and all(target is None for target in targets):
        return None
    grades = [parse_grade(target) for target in targets]
    bad = [position for position, grade in enumerate(grades) if grade is None]
    if bad:
        label, target = tags[bad[0]]["tag"], targets[bad[0]]
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        faults.append(f"target of label {shortened(label)}: found {shortened(target)}, wanted {GRADES_WANTED}{more}")
        return None
    return np.array(grades, dtype=np.int64)


def parse_grade(target: Any) -> int | None:
    """Parse a grade from a number or the text of a decimal number; None if it is not a grade."""
    is_text = isinstance(target, str) and DECIMAL.fullmatch(target.strip())
    if isinstance(target, bool) or not (is_text or isinstance(target, int | float)):
        return None
    grade = float(target) if is_text else target
    return int(grade) if grade in range(MAX_GRADE + 1) else None


def _parse_pairs(index: Any, labels: Sequence[str], need: Need, faults: list[str]) -> NDArray[np.int64]:
    pairs = [] if index is None else index
    # Without labels, a fault reported already, no position can be right.
    if not labels or pairs == []:
        if labels and need == "pairs":
            faults.append("index: found no pairs, wanted a list of [better, worse]")
        return np.empty((0, 2), dtype=np.int64)
    if not isinstance(pairs, list):
        faults.append("index: wanted a list of [better, worse]")
        return np.empty((0, 2), dtype=np.int64)
    bad = [pair for pair in pairs if not _is_pair(pair, len(labels))]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        faults.append(f"index: found {shortened(bad[0])}, wanted two different positions below {len(labels)}{more}")
        return np.empty((0, 2), dtype=np.int64)
    seen = list(map(as_seen, labels))
    alike = next((pair for pair in pairs if seen[pair[0]] == seen[pair[1]]), None)
    if alike is not None:
        faults.append(f"index: found {alike}, the label {shortened(labels[alike[0]])} twice, wanted two labels")
    return np.array(pairs, dtype=np.int64)


def _is_pair(pair: Any, labels: int) -> bool:
    whole = isinstance(pair, list) and len(pair) == 2 and all(type(position) is int for position in pair)
    return whole and all(0 <= position < labels for position in pair) and pair[0] != pair[1]
