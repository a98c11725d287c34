"""Inputs of the demo: typed labels, uploaded frames, and examples from a run's data."""

import csv
import io
import mimetypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from lr2ppo.data.annotations import read_clips
from lr2ppo.data.frames import IMAGE_SUFFIXES, missing_frames, unusable_frames
from lr2ppo.errors import UserError
from lr2ppo.runs.lookup import read_data

# A longer list is most likely text pasted into the wrong field.
MOST_LABELS = 500
# The page shows each label hundreds of times: in the table of preferences, and for the pointer over it.
LONGEST_LABEL = 200
TITLE_LENGTH = 64


@dataclass(frozen=True)
class Example:
    """An example clip: its title, and the values of the page's fields."""

    title: str
    frames: tuple[Path, ...]
    labels: tuple[str, ...]
    description: str


def parse_labels(text: str) -> tuple[list[str], list[str]]:
    """Parse labels, one per line or separated by commas; return the unique ones in order, and the repeated ones.

    A label that contains a comma needs double quotes, as in a CSV file. Raises `UserError` if there are none, more
    than `MOST_LABELS`, or one longer than `LONGEST_LABEL`.
    """
    labels: dict[str, None] = {}
    repeated: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            # Parse each line separately, so that an unclosed quote ends with its line.
            fields = next(csv.reader([line], skipinitialspace=True), [])
        except csv.Error as error:
            raise UserError(f"Line {number} of the labels cannot be read: {error}.") from None
        for field in fields:
            label = " ".join(field.split())
            if len(label) > LONGEST_LABEL:
                raise UserError(
                    f"Line {number} holds a label of {len(label):,} characters, at most {LONGEST_LABEL} fit: "
                    "shorten it, or split it with commas."
                )
            if label:
                (repeated if label in labels else labels)[label] = None
    if not labels:
        raise UserError("There are no labels yet: type some, one per line or separated by commas.")
    if len(labels) > MOST_LABELS:
        raise UserError(f"Found {len(labels)} labels, the page takes at most {MOST_LABELS}: remove some.")
    return list(labels), list(repeated)


def format_labels(labels: Sequence[str]) -> str:
    """Format labels as `parse_labels` reads them, one per line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([label] for label in labels)
    return text.getvalue().removesuffix("\n")


def uploaded_frames(uploads: Sequence[str]) -> Path | list[Path]:
    """Return the one video or image, or the images in the order given.

    Raises `UserError` if there are none, or images beside a video.
    """
    if not uploads:
        raise UserError("There are no frames yet: drop some images, or one video, into the field above the labels.")
    paths = [Path(upload) for upload in uploads]
    videos = [path for path in paths if not _is_image(path)]
    if not videos and len(paths) > 1:
        return paths
    if len(paths) > 1:
        raise UserError(
            f"{videos[0].name} is a video, beside {len(paths) - 1} more files: give one video, or only images."
        )
    # As a path, not a list: an animation is read like a video.
    return paths[0]


def find_examples(run: Path | None, count: int = 4) -> list[Example]:
    """Return the first test clips of a run's data with all frames available; none if the data is missing."""
    if run is None:
        return []
    data = read_data(run)
    try:
        clips = read_clips(data.root / data.test)
    except UserError:
        return []
    examples: list[Example] = []
    for clip in clips:
        if len(examples) == count:
            break
        if clip.images and not missing_frames([clip], data.root) and not unusable_frames([clip], data.root):
            frames = tuple((data.root / image).resolve() for image in clip.images)
            examples.append(
                Example(
                    shorten(clip.description, TITLE_LENGTH, placeholder=" …") or clip.id,
                    frames,
                    clip.labels,
                    clip.description,
                )
            )
    return examples


def _is_image(path: Path) -> bool:
    """Whether to read a file as an image, judged by its name."""
    guess = mimetypes.guess_type(path.name)[0] or ""
    return path.suffix.lower() in IMAGE_SUFFIXES or guess.startswith("image/")
