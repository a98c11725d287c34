"""What a person gives the demo: labels as typed, frames as uploaded, and examples from a run's own data."""

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

# A longer list is most likely a text pasted into the wrong place.
MOST_LABELS = 500
TITLE_LENGTH = 64


@dataclass(frozen=True)
class Example:
    """A clip that fills the page: its title, and what its fields are to hold."""

    title: str
    frames: tuple[Path, ...]
    labels: tuple[str, ...]
    description: str


def parse_labels(text: str) -> tuple[list[str], list[str]]:
    """Labels one a line or separated by commas, each once in the order typed, and those that were typed again.

    A label that holds a comma stands in double quotes, as in a CSV file. Raises `UserError` where there is none,
    or more than can be meant.
    """
    labels: dict[str, None] = {}
    repeated: dict[str, None] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            # A field that no quote ends goes to the end of its line, no further: every line is read alone.
            fields = next(csv.reader([line], skipinitialspace=True), [])
        except csv.Error as error:
            raise UserError(f"The labels' line {number} cannot be read: {error}.") from None
        for field in fields:
            label = " ".join(field.split())
            if label:
                (repeated if label in labels else labels)[label] = None
    if not labels:
        raise UserError("There are no labels yet: type some, one a line or separated by commas.")
    if len(labels) > MOST_LABELS:
        raise UserError(f"These are {len(labels)} labels, and the page takes at most {MOST_LABELS}: leave some out.")
    return list(labels), list(repeated)


def format_labels(labels: Sequence[str]) -> str:
    """Labels as `parse_labels` reads them, one a line."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([label] for label in labels)
    return text.getvalue().removesuffix("\n")


def uploaded_frames(uploads: Sequence[str]) -> Path | list[Path]:
    """One video, or images in the order given; raises `UserError` where there are none, or both."""
    if not uploads:
        raise UserError("There are no frames yet: drop some images, or one video, into the field above the labels.")
    paths = [Path(upload) for upload in uploads]
    videos = [path for path in paths if not _is_image(path)]
    if not videos:
        return paths
    if len(paths) > 1:
        raise UserError(
            f"{videos[0].name} is a video, beside {len(paths) - 1} more files: give one video, or images alone."
        )
    return videos[0]


def find_examples(run: Path | None, count: int = 4) -> list[Example]:
    """The first test clips of a run's data whose frames are all at hand; none where the data itself is not."""
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
    """Whether a file is to be read as an image: by its name, as which file it is only reading it tells."""
    guess = mimetypes.guess_type(path.name)[0] or ""
    return path.suffix.lower() in IMAGE_SUFFIXES or guess.startswith("image/")
