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
from contextlib import ExitStack, contextmanager
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from lr2ppo.data.annotations import Clip, ClipFault
from lr2ppo.errors import UserError, path_errors_as_user_errors, raise_faults
from lr2ppo.files import check_regular, file_fingerprint, open_regular

Frame = str | PathLike[str] | Image.Image | NDArray[np.uint8]
# A folder of images, a video or an image; or a clip's frames in time order.
Frames = str | PathLike[str] | Image.Image | NDArray[np.uint8] | Sequence[Frame]
# From the number of frames, the positions of those to use.
Choose = Callable[[int], NDArray[np.int64]]
# What is kept of each frame.
Kept = TypeVar("Kept")

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
# Shades of a grey PNG with few bits a pixel are this many apart in PIL, but not its transparent shade.
SHADE_STEPS = {"L;2": 85, "L;4": 17}
ANIMATED = ("GIF", "WEBP", "PNG")
# Every picture up to the last one that is read is decoded: about 10 seconds of work.
MOST_ANIMATED_PIXELS = 2**31
# Floats that are no whole numbers may be resampled, which goes up to this factor beyond white,
BEYOND_WHITE = 1.25
# and below black in at most this share of the pixels.
MOST_BELOW_BLACK = 1 / 20
# TIFF's tag that says what its numbers mean: whether 0 is white, which PIL reads for 8 bits only.
PHOTOMETRIC, WHITE_IS_ZERO, YCBCR, CIELAB = 262, 0, 6, 8
# TIFF's tag for the type of its numbers, and its values for whole numbers from 0 and for those with a sign.
SAMPLE_FORMAT, UNSIGNED, SIGNED = 339, (1,), (2,)
# TIFF's tags for the size of a tile, each of which is decoded whole.
TILE_WIDTH, TILE_LENGTH = 322, 323
LARGEST_USUAL_TILE = 1024 * 1024
# A progressive JPEG is decoded in scans, each of which takes as long as a whole picture; programs write about 10.
MOST_SCANS, START_OF_SCAN = 100, b"\xff\xda"
# TIFF's tags for the bits of each channel, and for how channels are stored.
BITS, PLANES, SEPARATE = 258, 284, 2
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


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Within the context, an image of which only the header is read; its pixels can be decoded there.

    Raises ValueError if it is no image, too large or too narrow, or if PIL would read its numbers as others.
    """
    with ExitStack() as opened:
        try:
            file = opened.enter_context(open_regular(path))
            with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
                image = opened.enter_context(Image.open(file, formats=FORMATS))
        except UnidentifiedImageError:
            raise ValueError(f"is not an image of the formats {', '.join(FORMATS)}") from None
        except MemoryError:
            raise
        except Exception as error:
            # PIL raises many types for a damaged header, and only warns about a huge image.
            raise ValueError(f"cannot be used: {error}") from None
        check_size(*image.size)
        _check_numbers(image)
        yield image


def _check_scans(image: Image.Image) -> None:
    """Raise ValueError if decoding a JPEG takes far more time than its size says."""
    file = getattr(image, "fp", None)
    if image.format in ("JPEG", "MPO") and file is not None:
        place = file.tell()
        file.seek(0)
        scans = file.read().count(START_OF_SCAN)
        file.seek(place)
        if scans > MOST_SCANS:
            raise ValueError(f"has {scans} scans, wanted at most {MOST_SCANS}; save it again")


def _check_numbers(image: Image.Image) -> None:
    """Raise ValueError if PIL would read an image's numbers as others, or far more of them than its size says."""
    key = image.info.get("transparency")
    # PIL keeps the high bytes of the pixels, and looks for the key's low bytes among them.
    if isinstance(key, tuple) and (_stored_mode(image).startswith("RGB;16") or max(key) > 255):
        raise ValueError("has a transparent colour of 16 bits a channel, wanted an alpha channel, or 8 bits a channel")
    if _has_key_of_unknown_bits(image):
        raise ValueError(
            "is decoded and has a transparent colour, of which PIL no longer knows the bits; give its path, "
            "or remove info['transparency']"
        )
    tags = getattr(image, "tag_v2", {})
    width, length = (side if isinstance(side := tags.get(tag), int) else 0 for tag in (TILE_WIDTH, TILE_LENGTH))
    if width * length > 4 * max(image.width * image.height, LARGEST_USUAL_TILE):
        raise ValueError(f"has tiles of {width} x {length} pixels, wanted no more pixels than the picture has")
    if image.mode == "L" and tags.get(SAMPLE_FORMAT) == SIGNED:
        raise ValueError("has signed numbers of 8 bits, wanted unsigned ones, or signed ones of 16 bits")
    # Of uncompressed planes, PIL reads each as plain bytes.
    is_plain = set(tags.get(BITS, ())) == {8} and tags.get(PHOTOMETRIC) not in (WHITE_IS_ZERO, YCBCR)
    is_misread = tags.get(PHOTOMETRIC) == CIELAB or (image.info.get("compression") == "raw" and not is_plain)
    if tags.get(PLANES) == SEPARATE and is_misread:
        raise ValueError(
            "has separate planes (PlanarConfiguration 2) of Lab, or of no plain 8 bits and uncompressed, wanted a PNG, "
            "or a TIFF with PlanarConfiguration 1"
        )


def _has_key_of_unknown_bits(image: Image.Image) -> bool:
    """Whether an image is decoded and has a transparent colour that its file may count in 2, 4 or 16 bits."""
    if _stored_mode(image) or image.format not in (None, "PNG"):
        return False
    key = image.info.get("transparency")
    # Of 8 bits, a shade above those of 4 bits is certain; 0 is black with any number of bits.
    return (image.mode == "L" and isinstance(key, int) and 0 < key < 2**4) or isinstance(key, tuple)


def read_image(path: Path) -> Image.Image:
    """Decode an image to RGB; raises `UserError` if that fails."""
    with _readable(path), open_image(path) as image:
        return to_rgb(image)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Within the context, an error of reading an image is raised as `UserError`."""
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            yield
    except MemoryError:
        raise
    except Exception as error:
        # PIL raises many types for damage after the header, too.
        raise UserError(f"{path}: is not a readable image: {error}; replace it and run again") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Make an image RGB as a viewer shows it: turned as its EXIF says, 8 bits a channel, laid on white.

    Numbers of more than 8 bits are scaled as `_black_and_white` says. Raises ValueError for NaN and infinity, and for
    numbers that PIL would read as others.
    """
    _check_numbers(image)
    _check_scans(image)
    tags = getattr(image, "tag_v2", None)
    is_unsigned = tags is not None and tags.get(SAMPLE_FORMAT, UNSIGNED) == UNSIGNED
    is_negative = tags is not None and tags.get(PHOTOMETRIC) == WHITE_IS_ZERO
    step = SHADE_STEPS.get(_stored_mode(image), 1)
    image = _turn_upright(image)
    if step > 1 and isinstance(key := image.info.get("transparency"), int):
        image.info["transparency"] = key * step
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        shades = _scale_to_8_bits(image, is_unsigned)
        return (ImageOps.invert(shades) if is_negative else shades).convert("RGB")
    if not _is_transparent(image):
        return image.convert("RGB")
    # PIL converts La to LA only.
    shown = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", shown.size, "white"), shown).convert("RGB")


def _stored_mode(image: Image.Image) -> str:
    """PIL's name for how a file stores its pixels; empty once they are decoded."""
    tile = getattr(image, "tile", None)
    return str(tile[0][3]) if tile else ""


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
    low, high = _black_and_white(pixels)
    shades = np.interp(pixels, (low, high), (0, 255)).round().astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):
        shades[pixels == key] = 255
    return Image.fromarray(shades)


def _black_and_white(pixels: NDArray[np.integer] | NDArray[np.floating]) -> tuple[float, float]:
    """The numbers that become black and white. Raises ValueError for NaN and infinity.

    They are 0 and the smallest of `USUAL_BITS` that holds all, for floats within 0 and 1 also 1, and with negative
    numbers the lowest and the highest. Of floats that are no whole numbers, what resampling adds is cut off, and white
    is 1 if at least half of those above 0 are at most about 1, however bright the others.
    """
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("has pixels that are NaN or infinite, wanted finite numbers")
    ranges = [2.0**bits - 1 for bits in USUAL_BITS]
    beyond = 1.0
    if pixels.dtype.kind == "f":
        ranges = [1.0, *ranges]
        if (pixels != np.rint(pixels)).any():
            beyond = BEYOND_WHITE
            if np.count_nonzero(pixels < 0) <= MOST_BELOW_BLACK * pixels.size:
                low = max(low, 0.0)
            # Highlights may be any number of times brighter than white.
            if low >= 0 and 2 * np.count_nonzero(pixels > beyond) <= np.count_nonzero(pixels > 0):
                high = min(high, 1.0)
    if low < 0:
        return low, high
    return 0.0, next((each for each in ranges if high <= beyond * each), high)


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
        if missing := missing_frames([clip], frames_root):
            faults.append(f"clip {clip.id}: no file {missing[0]}")
    faults += map(str, unusable_frames(clips, frames_root))
    raise_faults(frames_root, faults, "check --frames-root, or replace these frames")


def _frame_fault(root: Path, image: str) -> str | None:
    place = Path(os.path.realpath(root / image))
    if not place.is_relative_to(root):
        return f"is at {place}, outside {root}; set --frames-root to the folder that holds the frames"
    try:
        if os.path.isfile(place):
            with open_image(place):
                pass
    except ValueError as fault:
        return str(fault)
    return None


def read_frames(frames: Frames, choose: Choose) -> list[Image.Image]:
    """Read the chosen frames as RGB images, decoding no others; raises `UserError` as `prepare_frames`."""
    return prepare_frames(frames, choose, lambda image: image)


@path_errors_as_user_errors()
def prepare_frames(frames: Frames, choose: Choose, prepare: Callable[[Image.Image], Kept]) -> list[Kept]:
    """Read the chosen frames as RGB images, and keep of each only what `prepare` makes of it, before the next is read.

    A frame chosen several times is prepared once. Raises `UserError` if there are none, or if a chosen one cannot be
    read.
    """
    if isinstance(frames, str | PathLike):
        path = Path(frames)
        if path.is_dir():
            return _take(list_images(path), choose, prepare)
        if not path.is_file():
            found = "is neither a file nor a folder" if path.exists() else "no such file or folder"
            raise UserError(f"{path}: {found}; give a folder of images, a video or an image")
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            return read_video(path, choose, prepare)
        return _read_pictures(path, choose, prepare)
    if isinstance(frames, Image.Image) or (isinstance(frames, np.ndarray) and frames.ndim in (0, 3)):
        return _take([frames], choose, prepare)
    # A set or a mapping has no order in time.
    if not isinstance(frames, Iterable) or isinstance(frames, bytes | Set | Mapping):
        wanted = "a folder of images, a video, an image, or a list of frames in time order"
        raise UserError(f"frames: found {type(frames).__name__}, wanted {wanted}")
    return _take(list(frames), choose, prepare)


def _read_pictures(path: Path, choose: Choose, prepare: Callable[[Image.Image], Kept]) -> list[Kept]:
    """Read the chosen pictures of an animation, or the only one of another image file."""
    kept = {}
    with ExitStack() as opened:
        with _readable(path):
            image = opened.enter_context(open_image(path))
            count = getattr(image, "n_frames", 1) if image.format in ANIMATED else 1
            # A PNG may have a picture for programs that do not know animations, before those of its animation.
            skipped = 1 if count > 1 and getattr(image, "default_image", False) else 0
            has_pages = image.format == "TIFF" and getattr(image, "is_animated", False)
        if has_pages:
            # Pages differ in size and may be thumbnails, and counting those of a damaged file can take hours.
            raise UserError(
                f"{path}: found several pages, wanted one picture; save each page as a file, and give their folder"
            )
        positions = (choose(count - skipped) + skipped).tolist()
        if (max(positions, default=0) + 1) * image.width * image.height > MOST_ANIMATED_PIXELS:
            raise UserError(
                f"{path}: found {count} pictures of {image.width} x {image.height} pixels, wanted at most "
                f"{MOST_ANIMATED_PIXELS:,} pixels up to the last one that is read; make them smaller, or a video"
            )
        # Each picture of an animation may build on those before it.
        for position in range(max(positions, default=-1) + 1) if count > 1 else [0]:
            with _readable(path):
                if count > 1:
                    before = dict(image.info) if position else {}
                    image.seek(position)
                    _check_animation(image, position, before)
                picture = to_rgb(image) if position in positions else None
            if picture is not None:
                kept[position] = prepare(picture)
    return [kept[position] for position in positions]


def _check_animation(image: Image.Image, position: int, before: Mapping[str | tuple[int, int], Any]) -> None:
    """Raise ValueError if PIL would make a frame of an animated PNG of those before it otherwise than a viewer.

    `before` is what PIL knows about the frame before.
    """
    if image.format != "PNG" or position == 0:
        return
    if _is_transparent(image):
        fault = "are blended over others" if image.info.get("blend") == PngImagePlugin.Blend.OP_OVER else ""
    else:
        # Where the frame before is cleared, a viewer shows nothing, and PIL black.
        kept = (None, PngImagePlugin.Disposal.OP_NONE)
        covers_all = image.info.get("bbox") in (None, (0, 0, *image.size))
        fault = "" if before.get("disposal") in kept or covers_all else "leave parts of the picture empty"
    if fault:
        raise ValueError(f"has frames that {fault}, wanted an animated WebP, or a video")


def _take(frames: Sequence[Any], choose: Choose, prepare: Callable[[Image.Image], Kept]) -> list[Kept]:
    if not frames:
        raise UserError("frames: found none, wanted at least one image")
    chosen = choose(len(frames)).tolist()
    kept = {position: prepare(_decode(position, frames[position])) for position in dict.fromkeys(chosen)}
    return [kept[position] for position in chosen]


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
    except MemoryError:
        raise
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
    """Sort paths by the names of their folders, then by their own, with 10 after 9."""
    return sorted(paths, key=lambda path: [_by_number(name) for name in path.parts])


def _by_number(name: str) -> list[str | int]:
    """Split a name into alternating text and numbers."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def read_video(path: Path, choose: Choose, prepare: Callable[[Image.Image], Kept]) -> list[Kept]:
    """Read the frames of a video that `choose` picks, and keep of each what `prepare` makes of its RGB image.

    Raises `UserError` if the file is no video, is damaged, or if PyAV is not installed.
    """
    with _open_video(path) as container:
        times = sorted(_shown_times(container))
    if not times:
        raise UserError(f"{path}: found no frames with a timestamp; convert it, to mp4 for example")
    positions = choose(len(times)).tolist()
    wanted = sorted({times[position] for position in positions})
    frames = _seek_each(path, wanted, prepare) or _decode_all(path, wanted, prepare)
    if not frames:
        raise UserError(f"{path}: none of its frames can be decoded; convert it, to mp4 for example")
    # A truncated file lacks the last frames of its index.
    return [frames[min(frames, key=lambda found: abs(found - times[position]))] for position in positions]


def _shown_times(container: Any) -> Iterator[int]:
    """The times of the frames that a player shows: a video cut without new encoding keeps hidden ones."""
    for packet in container.demux(video=0):
        if packet.size and packet.pts is not None and not packet.is_discard:
            yield packet.pts


def _seek_each(path: Path, times: Sequence[int], prepare: Callable[[Image.Image], Kept]) -> dict[int, Kept]:
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
                frames[time] = prepare(_to_image(frame, container.streams.video[0]))
    return frames


def _decode_all(path: Path, times: Sequence[int], prepare: Callable[[Image.Image], Kept]) -> dict[int, Kept]:
    """The frames at some times, found by decoding the video from its start."""
    frames: dict[int, Kept] = {}
    left = list(times)
    with _open_video(path) as container:
        for frame in container.decode(video=0):
            while left and frame.pts is not None and frame.pts >= left[0]:
                frames[left.pop(0)] = prepare(_to_image(frame, container.streams.video[0]))
            if not left:
                break
    return frames


def _to_image(frame: Any, stream: Any) -> Image.Image:
    """Convert a video's frame to RGB: stretched and turned as the file says, laid on white.

    Raises ValueError if it is too large.
    """
    # A frame may be larger than the header says.
    check_size(frame.width, frame.height)
    has_alpha = any(component.is_alpha for component in frame.format.components)
    image = to_rgb(Image.fromarray(frame.to_ndarray(format="rgba"))) if has_alpha else frame.to_image()
    if aspect := stream.sample_aspect_ratio:
        size = (max(1, round(image.width * aspect)), image.height)
        check_size(*size)
        image = image.resize(size)
    displayed = ROTATED.get(_tags(stream).get("rotate", ""))
    if (matrix := frame.side_data.get("DISPLAYMATRIX")) is not None:
        # Nine numbers by rows; the third column is for perspective, the third row moves the picture.
        a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
        largest = max(map(abs, (a, b, c, d))) or 1
        displayed = tuple(round(part / largest) for part in (a, b, c, d))
    return image.transpose(DISPLAYED[displayed]) if displayed in DISPLAYED else image


def _tags(stream: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in stream.metadata.items()}


@contextmanager
def _open_video(path: Path) -> Iterator[Any]:
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: reading videos needs PyAV, which is not installed: pip install '.[video]'") from None
    try:
        check_regular(path)
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        if Image.MAX_IMAGE_PIXELS is not None:
            # Of every frame, before it is decoded: a frame may be larger than the header says.
            options["max_pixels"] = str(Image.MAX_IMAGE_PIXELS)
        with av.open(os.path.realpath(path), options=options) as container:
            if not container.streams.video:
                raise UserError(f"{path}: found no video stream, wanted a video")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise ValueError("its codec is unknown")
            check_size(stream.width, stream.height)
            # In a second layer beside the picture, which these decoders leave out.
            if stream.codec_context.name in ("vp8", "vp9") and _tags(stream).get("alpha_mode", "0") != "0":
                raise UserError(
                    f"{path}: found transparency in {stream.codec_context.name.upper()}, which cannot be read; give "
                    "its frames as pictures with alpha, or a video without it"
                )
            stream.codec_context.options = {name: options[name] for name in options.keys() & {"max_pixels"}}
            yield container
    except (av.FFmpegError, ValueError, OSError) as error:
        raise UserError(f"{path}: is not a readable video: {error}; convert it, to mp4 for example") from None
