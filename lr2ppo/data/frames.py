"""Frames of a clip: choose them, check their files, and read them from any source.

A folder, a video, image files, PIL images and arrays all become RGB images; only chosen frames are decoded. A bad file
is refused by its header, before any pixel is decoded.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from lr2ppo.data.annotations import Clip, ClipFault
from lr2ppo.errors import UserError, raise_faults

Frame = str | PathLike[str] | Image.Image | NDArray[np.uint8]
# A folder of images, a video or an image; or a clip's frames in time order.
Frames = str | PathLike[str] | Image.Image | NDArray[np.uint8] | Sequence[Frame]
# From the number of frames, the positions of those to use.
Choose = Callable[[int], NDArray[np.int64]]

# PIL reads more formats, some by starting other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
# The formats ffmpeg may read: no playlists and no URLs, through which a file could open others.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf"
# Encoders scale the shorter side, for example to 224 pixels, which would make a narrow image huge.
MAX_ASPECT_RATIO = 100


def evenly_spaced(available: int, wanted: int) -> NDArray[np.int64]:
    """Positions of `wanted` of the available frames, from the first to the last; if there are fewer, some repeat."""
    return np.linspace(0, available - 1, wanted).round().astype(np.int64)


def check_size(width: int, height: int) -> None:
    """Raise ValueError if an image is empty, too large or too narrow."""
    if max(1, width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"has {width} x {height} pixels, wanted an aspect ratio of at most {MAX_ASPECT_RATIO}")
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"has {width} x {height} pixels, wanted at most {Image.MAX_IMAGE_PIXELS} in all")


def open_image(path: Path) -> Image.Image:
    """Open an image and read only its header; raises ValueError if it is no image, too large or too narrow."""
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"is not an image of the formats {', '.join(FORMATS)}") from None
    except Exception as error:
        # PIL raises many types for a damaged header, and only warns about a huge image.
        raise ValueError(f"cannot be used: {error}") from None
    try:
        check_size(*image.size)
    except ValueError:
        image.close()
        raise
    return image


def read_image(path: Path) -> Image.Image:
    """Decode an image to RGB; raises `UserError` if that fails."""
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            open_image(path) as image,
        ):
            return image.convert("RGB")
    except Exception as error:
        # Likewise for damage after the header.
        raise UserError(f"{path}: is not a readable image: {error}; replace it and run again") from None


def missing_frames(clips: Iterable[Clip], frames_root: Path) -> list[str]:
    """Paths of the clips' frames that do not exist as files."""
    return [image for clip in clips for image in clip.images if not os.path.isfile(frames_root / image)]


def unusable_frames(clips: Iterable[Clip], frames_root: Path) -> list[ClipFault]:
    """Faults of existing frames that are outside `frames_root` or are not images of a usable size."""
    root = frames_root.resolve()
    faults = []
    for clip in clips:
        for image in clip.images:
            if fault := _frame_fault(root, image):
                faults.append(ClipFault(clip.id, f"{image} {fault}"))
    return faults


def require_frames(clips: Sequence[Clip], frames_root: Path) -> None:
    """Raise `UserError` naming the clips whose frames are missing, and each frame that cannot be used."""
    faults = []
    for clip in clips:
        missing = missing_frames([clip], frames_root)
        if not clip.images or missing:
            faults.append(f"clip {clip.id}: {f'no file {missing[0]}' if missing else 'names no frames'}")
    faults += map(str, unusable_frames(clips, frames_root))
    raise_faults(frames_root, faults, "check --frames-root, or replace these frames")


def _frame_fault(root: Path, image: str) -> str | None:
    place = Path(os.path.realpath(root / image))
    if not place.is_relative_to(root):
        return f"is at {place}, outside {root}; set --frames-root to the folder that holds the frames"
    try:
        if os.path.isfile(place):
            open_image(place).close()
    except ValueError as fault:
        return str(fault)
    return None


def read_frames(frames: Frames, choose: Choose) -> list[Image.Image]:
    """Read the chosen frames as RGB images, decoding no others.

    Raises `UserError` if there are none, or if a chosen one cannot be read.
    """
    if isinstance(frames, str | PathLike):
        path = Path(frames)
        if path.is_dir():
            return _take(list_images(path), choose)
        if not path.is_file():
            raise UserError(f"{path}: no such file or folder; give a folder of images, a video or an image")
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            return read_video(path, choose)
        return _take([path], choose)
    if isinstance(frames, Image.Image) or (isinstance(frames, np.ndarray) and frames.ndim == 3):
        return _take([frames], choose)
    return _take(list(frames), choose)


def _take(frames: Sequence[Any], choose: Choose) -> list[Image.Image]:
    if not frames:
        raise UserError("frames: found none, wanted at least one image")
    chosen = choose(len(frames)).tolist()
    # A frame chosen several times is decoded once.
    decoded = {position: _decode(position, frames[position]) for position in dict.fromkeys(chosen)}
    return [decoded[position] for position in chosen]


def _decode(position: int, frame: Any) -> Image.Image:
    if isinstance(frame, str | PathLike):
        return read_image(Path(frame))
    try:
        if isinstance(frame, Image.Image):
            check_size(*frame.size)
            return frame.convert("RGB")
        if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
            check_size(frame.shape[1], frame.shape[0])
            return Image.fromarray(frame)
    except (ValueError, OSError) as error:
        raise UserError(f"frame {position}: {error}") from None
    found = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
    raise UserError(f"frame {position}: found {found}, wanted a path, a PIL image or an array [height, width, 3] uint8")


def list_images(folder: Path) -> list[Path]:
    """A folder's images in the order of their names; raises `UserError` if there are none."""
    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    if not images:
        raise UserError(f"{folder}: found no images, wanted some that end in {', '.join(IMAGE_SUFFIXES)}")
    return sort_by_name(images)


def sort_by_name(paths: Iterable[Path]) -> list[Path]:
    """Sort paths by name, with 10 after 9."""
    return sorted(paths, key=lambda path: [int(part) if part.isdecimal() else part for part in _parts(path.name)])


def _parts(name: str) -> list[str]:
    """Split a name into alternating text and numbers."""
    return re.split(r"(\d+)", name)


def read_video(path: Path, choose: Choose) -> list[Image.Image]:
    """Read the frames of a video that `choose` picks, as RGB images.

    Raises `UserError` if the file is no video, is damaged, or if PyAV is not installed.
    """
    with _open_video(path) as container:
        times = sorted(packet.pts for packet in container.demux(video=0) if packet.size and packet.pts is not None)
    if not times:
        raise UserError(f"{path}: found no frames with a timestamp; convert it, to mp4 for example")
    positions = choose(len(times)).tolist()
    wanted = sorted({times[position] for position in positions})
    frames = _seek_each(path, wanted) or _decode_all(path, wanted)
    if not frames:
        raise UserError(f"{path}: none of its frames can be decoded; convert it, to mp4 for example")
    # A truncated file lacks the last frames of its index.
    return [frames[min(frames, key=lambda found: abs(found - times[position]))] for position in positions]


def _seek_each(path: Path, times: Sequence[int]) -> dict[int, Image.Image]:
    """The frames at some times, each decoded from the key frame before it; none if seeking is unreliable."""
    frames = {}
    with _open_video(path) as container:
        for time in times:
            container.seek(time, stream=container.streams.video[0], backward=True)
            shown = container.decode(video=0)
            first = next(shown, None)
            # Files without an index, such as broadcasts, may seek to a later frame, or to one that needs others.
            if first is None or not first.key_frame or first.pts is None or first.pts > time:
                return {}
            frame = next((each for each in chain([first], shown) if each.pts is not None and each.pts >= time), None)
            if frame is not None:
                frames[time] = frame.to_image()
    return frames


def _decode_all(path: Path, times: Sequence[int]) -> dict[int, Image.Image]:
    """The frames at some times, found by decoding the video from its start."""
    frames: dict[int, Image.Image] = {}
    left = list(times)
    with _open_video(path) as container:
        for frame in container.decode(video=0):
            while left and frame.pts is not None and frame.pts >= left[0]:
                frames[left.pop(0)] = frame.to_image()
            if not left:
                break
    return frames


@contextmanager
def _open_video(path: Path) -> Iterator[Any]:
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: reading videos needs PyAV, which is not installed: pip install '.[video]'") from None
    try:
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        with av.open(str(path.resolve()), options=options) as container:
            if not container.streams.video:
                raise UserError(f"{path}: found no video stream, wanted a video")
            stream = container.streams.video[0]
            check_size(stream.width, stream.height)
            yield container
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{path}: is not a readable video: {error}; convert it, to mp4 for example") from None
