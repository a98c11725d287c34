"""Frames of a table's clips: find them and put them into a data folder."""

import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from PIL import Image
from tqdm import tqdm

from lr2ppo.data.convert.table import TableClip
from lr2ppo.data.frames import evenly_spaced, list_images, open_image, read_video, sort_by_name
from lr2ppo.errors import UserError
from lr2ppo.files import match_paths

# File systems allow 255.
MAX_NAME_BYTES = 200


@dataclass(frozen=True)
class Source:
    """Where a clip's frames come from: image files, or a video."""

    frames: Sequence[Path] = ()
    video: Path | None = None


def find_sources(clips: Iterable[TableClip], root: Path, faults: list[str]) -> dict[str, Source]:
    """Find each clip's frames, with paths relative to `root`; faults are added to `faults`."""
    sources = {}
    for clip in tqdm(clips, desc="looking at the frames", unit="clip", disable=None):
        try:
            sources[clip.id] = _find_source(clip, root)
        except (UserError, ValueError, OSError) as fault:
            faults.append(f"row {clip.row}: clip {clip.id}: {fault}")
    return sources


def _find_source(clip: TableClip, root: Path) -> Source:
    if len(os.fsencode(folder_name(clip.id))) > MAX_NAME_BYTES:
        raise ValueError(f"its id is too long for a folder's name; give one of at most {MAX_NAME_BYTES} letters")
    if "video" in clip.about:
        video = root / clip.about["video"]
        if not os.path.isfile(video):
            raise ValueError(f"no video {video}")
        return Source(video=video)
    frames = [
        path for part in clip.about.get("frames", "").split(";") if part.strip() for path in _find(root, part.strip())
    ]
    for path in frames:
        try:
            with open_image(path):
                pass
        except ValueError as fault:
            raise ValueError(f"{path} {fault}") from None
    return Source(frames)


def _find(root: Path, part: str) -> list[Path]:
    """The images of a file, a folder or a pattern, in the order of their paths."""
    place = root / part
    if os.path.isdir(place):
        return list_images(place)
    found = [path for path in match_paths(root, part) if os.path.isfile(path)]
    if not found:
        raise ValueError(f"no frames {place}; paths are relative to the table's folder, or to --frames-root")
    return sort_by_name(found)


def folder_name(clip_id: str) -> str:
    """A name for a clip's folder, unique to its id and without path separators."""
    name = re.sub(r"[^\w.-]", lambda found: quote(found[0], safe=""), clip_id)
    return name.replace(".", "%2E") if name.strip(".") == "" else name


def _as_jpeg(picture: Image.Image) -> bytes:
    content = BytesIO()
    picture.save(content, format="JPEG", quality=90)
    return content.getvalue()


def place_frames(clip: TableClip, source: Source, out: Path, max_frames: int) -> tuple[str, ...]:
    """Put a clip's frames into the data folder; returns their paths there. Raises `UserError` for an unusable video.

    `max_frames` limits the frames of a video.
    """
    folder = f"frames/{folder_name(clip.id)}"
    (out / folder).mkdir(parents=True)
    names = []
    if source.video is not None:
        pictures = read_video(source.video, lambda found: evenly_spaced(found, min(found, max_frames)), _as_jpeg)
        for number, picture in enumerate(pictures):
            names.append(f"{folder}/{number:04d}.jpg")
            (out / names[-1]).write_bytes(picture)
    for number, path in enumerate(source.frames):
        names.append(f"{folder}/{number:04d}{path.suffix.lower()}")
        file = os.path.realpath(path)
        try:
            os.link(file, out / names[-1])
        except OSError:
            shutil.copyfile(file, out / names[-1])
    return tuple(names)
