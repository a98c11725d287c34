"""Frames of a clip: choose them, check their files, and read them from any source.

A folder, a video, image files, PIL images and arrays all become RGB images: turned upright, with 8 bits a channel, laid
on white. Only chosen frames are decoded. A bad file is refused by its header, before any pixel is decoded.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from lr2ppo.data.annotations import Clip, ClipFault
from lr2ppo.errors import UserError, path_errors_as_user_errors, raise_faults
from lr2ppo.files import check_regular, file_fingerprint

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
TRANSPARENT_MODES = ("RGBA", "RGBa", "LA", "La", "PA")
# Pixels of more than 8 bits are scaled by the smallest of these ranges that holds them.
USUAL_BITS = (8, 10, 12, 14, 16, 24, 32)
# TIFF's tag for the type of its numbers, and its value for whole numbers from 0.
SAMPLE_FORMAT, UNSIGNED = 339, (1,)
# How a video is shown, by its display matrix: a pixel (x, y) goes to (a x + c y, b x + d y), here as (a, b, c, d).
DISPLAYED = {
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
# The same in files of older programs: degrees clockwise in a stream's tag `rotate`.
ROTATED = {"90": (0, 1, -1, 0), "180": (-1, 0, 0, -1), "270": (0, -1, 1, 0)}


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
        check_regular(path)
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
            return to_rgb(image)
    except Exception as error:
        # Likewise for damage after the header.
        raise UserError(f"{path}: is not a readable image: {error}; replace it and run again") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Make an image RGB as a viewer shows it: turned as its EXIF says, 8 bits a channel, laid on white.

    Numbers of more than 8 bits are scaled by the smallest of `USUAL_BITS` that holds them, floats within 0 and 1 by 1,
    and images with negative numbers by their own range. Raises ValueError for NaN and infinity.
    """
    tags = getattr(image, "tag_v2", None)
    is_unsigned = tags is not None and tags.get(SAMPLE_FORMAT, UNSIGNED) == UNSIGNED
    image = _turn_upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _scale_to_8_bits(image, is_unsigned).convert("RGB")
    if not _is_transparent(image):
        return image.convert("RGB")
    # PIL converts La to LA only.
    shown = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")


def _turn_upright(image: Image.Image) -> Image.Image:
    image.load()
    if hasattr(image, "tag_v2"):
        # PIL turns a TIFF as it loads it, and in old versions keeps its EXIF data.
        return image
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        # PIL raises many types for damaged EXIF data, which say nothing about the pixels.
        return image


def _is_transparent(image: Image.Image) -> bool:
    """Whether an image has alpha, or a colour that stands for none."""
    by_palette = image.mode == "P" and image.palette is not None and image.palette.mode.endswith("A")
    return by_palette or image.mode in TRANSPARENT_MODES or image.info.get("transparency") is not None


def _scale_to_8_bits(image: Image.Image, is_unsigned: bool) -> Image.Image:
    """Scale an image of one channel of more than 8 bits to L."""
    pixels = np.asarray(image)
    if is_unsigned and image.mode == "I":
        # PIL reads unsigned numbers as signed ones.
        pixels = pixels.view(np.uint32)
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("has pixels that are NaN or infinite, wanted finite numbers")
    if low >= 0:
        low, ranges = 0.0, [2.0**bits - 1 for bits in USUAL_BITS]
        ranges = [1.0, *ranges] if image.mode == "F" else ranges
        high = next((each for each in ranges if high <= each), high)
    shades = np.interp(pixels, (low, high), (0, 255)).round().astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        shades[pixels == key] = 255
    return Image.fromarray(shades)


def frames_fingerprint(clip: Clip, frames_root: Path) -> str:
    """A fingerprint of the content of a clip's frames, in their order; raises OSError if one cannot be read."""
    frames = [file_fingerprint(frames_root / image) for image in clip.images]
    return hashlib.sha256(json.dumps(frames).encode()).hexdigest()[:16]


def missing_frames(clips: Iterable[Clip], frames_root: Path) -> list[str]:
    """Paths of the clips' frames that do not exist as files."""
    return [image for clip in clips for image in clip.images if not os.path.isfile(frames_root / image)]


def unusable_frames(clips: Iterable[Clip], frames_root: Path) -> list[ClipFault]:
    """Faults of existing frames that are outside `frames_root` or are not images of a usable size."""
    root = Path(os.path.realpath(frames_root))
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


@path_errors_as_user_errors()
def read_frames(frames: Frames, choose: Choose) -> list[Image.Image]:
    """Read the chosen frames as RGB images, decoding no others.

    Raises `UserError` if there are none, or if a chosen one cannot be read.
    """
    if isinstance(frames, str | PathLike):
        path = Path(frames)
        if path.is_dir():
            return _take(list_images(path), choose)
        if not path.is_file():
            found = "is neither a file nor a folder" if path.exists() else "no such file or folder"
            raise UserError(f"{path}: {found}; give a folder of images, a video or an image")
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            return read_video(path, choose)
        return _take([path], choose)
    if isinstance(frames, Image.Image) or (isinstance(frames, np.ndarray) and frames.ndim in (0, 3)):
        return _take([frames], choose)
    # A set or a mapping has no order in time.
    if not isinstance(frames, Iterable) or isinstance(frames, bytes | Set | Mapping):
        wanted = "a folder of images, a video, an image, or a list of frames in time order"
        raise UserError(f"frames: found {type(frames).__name__}, wanted {wanted}")
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
            return to_rgb(frame)
        if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
            check_size(frame.shape[1], frame.shape[0])
            return Image.fromarray(frame)
    except Exception as error:
        # A PIL image may be decoded only now, and damaged.
        raise UserError(f"frame {position}: {error}; replace it and run again") from None
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
                frames[time] = _to_image(frame, container.streams.video[0])
    return frames


def _decode_all(path: Path, times: Sequence[int]) -> dict[int, Image.Image]:
    """The frames at some times, found by decoding the video from its start."""
    frames: dict[int, Image.Image] = {}
    left = list(times)
    with _open_video(path) as container:
        for frame in container.decode(video=0):
            while left and frame.pts is not None and frame.pts >= left[0]:
                frames[left.pop(0)] = _to_image(frame, container.streams.video[0])
            if not left:
                break
    return frames


def _to_image(frame: Any, stream: Any) -> Image.Image:
    """Convert a video's frame to RGB: turned as the file says, laid on white."""
    has_alpha = any(component.is_alpha for component in frame.format.components)
    image = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba"))) if has_alpha else frame.to_image()
    tags = {name.lower(): value for name, value in stream.metadata.items()}
    displayed = ROTATED.get(tags.get("rotate", ""))
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is not None:
        # Nine numbers by rows; the third column is for perspective, the third row moves the picture.
        a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
        largest = max(map(abs, (a, b, c, d))) or 1
        displayed = tuple(round(part / largest) for part in (a, b, c, d))
    return image.transpose(DISPLAYED[displayed]) if displayed in DISPLAYED else image


@contextmanager
def _open_video(path: Path) -> Iterator[Any]:
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: reading videos needs PyAV, which is not installed: pip install '.[video]'") from None
    try:
        check_regular(path)
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        with av.open(os.path.realpath(path), options=options) as container:
            if not container.streams.video:
                raise UserError(f"{path}: found no video stream, wanted a video")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("its codec is unknown")
            check_size(stream.width, stream.height)
            yield container
    except (av.FFmpegError, ValueError, OSError) as error:
        raise UserError(f"{path}: is not a readable video: {error}; convert it, to mp4 for example") from None
