"""Frames on disk: where they may lie, and what is refused of them before the first of them is decoded."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from lr2ppo.data.annotations import Clip, ClipFault
from lr2ppo.errors import UserError

# PIL knows more, of which some start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Encoders scale the shorter side, to 224 pixels and the like: the longer one follows.
MOST_ELONGATED = 100


def open_image(path: Path) -> Image.Image:
    """An image of which the header alone is read; raises ValueError where it is none, is huge or is but a thread."""
    try:
        with warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning):
            image = Image.open(path, formats=FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"is no image of the formats {', '.join(FORMATS)}") from None
    except Exception as error:
        # PIL tells a damaged header in a dozen ways, and a huge image as a danger that it then decodes.
        raise ValueError(f"cannot be used: {error}") from None
    try:
        check_size(*image.size)
    except ValueError:
        image.close()
        raise
    return image


def check_size(width: int, height: int) -> None:
    """Raises ValueError for a picture that is empty, is huge or is but a thread."""
    if max(1, width, height) > MOST_ELONGATED * min(width, height):
        raise ValueError(f"is of {width} x {height} pixels, wanted sides of at most 1 to {MOST_ELONGATED}")
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"is of {width} x {height} pixels, wanted at most {Image.MAX_IMAGE_PIXELS} in all")


def read_image(path: Path) -> Image.Image:
    """An image decoded to RGB; raises `UserError` where that cannot be done."""
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            open_image(path) as image,
        ):
            return image.convert("RGB")
    except Exception as error:
        # What is wrong behind the header PIL tells in a dozen ways too.
        raise UserError(f"{path}: is not a readable image: {error}; replace it and run again") from None


def missing_frames(clips: Iterable[Clip], frames_root: Path) -> list[str]:
    """Paths of the clips' frames that lead to no file."""
    return [image for clip in clips for image in clip.images if not os.path.isfile(frames_root / image)]


def unusable_frames(clips: Iterable[Clip], frames_root: Path) -> list[ClipFault]:
    """Frames that are there, but outside the folder that they are to lie in, or that are no images of a usable size."""
    root = frames_root.resolve()
    faults = []
    for clip in clips:
        for image in clip.images:
            if fault := _frame_fault(root, image):
                faults.append(ClipFault(clip.id, f"{image} {fault}"))
    return faults


def _frame_fault(root: Path, image: str) -> str | None:
    place = Path(os.path.realpath(root / image))
    if not place.is_relative_to(root):
        return f"lies at {place}, outside {root}; give --frames-root the folder that holds the frames themselves"
    try:
        if os.path.isfile(place):
            open_image(place).close()
    except ValueError as fault:
        return str(fault)
    return None
