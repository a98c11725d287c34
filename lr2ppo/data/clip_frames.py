"""Frames of a clip from wherever they are: a folder, a video, single files, or pictures in memory."""

import re
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lr2ppo.data.images import check_size, read_image
from lr2ppo.data.video import read_video
from lr2ppo.errors import UserError

Frame = str | PathLike[str] | Image.Image | NDArray[np.uint8]
# A folder of images, a video or an image; or a clip's frames in time order.
Frames = str | PathLike[str] | Image.Image | NDArray[np.uint8] | Sequence[Frame]
# Which of so many frames are taken.
Choose = Callable[[int], NDArray[np.int64]]
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")


def read_frames(frames: Frames, choose: Choose) -> list[Image.Image]:
    """The chosen frames as RGB images, of which no others are decoded.

    Raises `UserError` where there are none, or where one of those chosen cannot be read.
    """
    if isinstance(frames, str | PathLike):
        path = Path(frames)
        if path.is_dir():
            return _take(_list_images(path), choose)
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
    # A frame that is taken several times is decoded once.
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


def _list_images(folder: Path) -> list[Path]:
    """A folder's images in the order of their names, in which 10 comes after 9."""
    images = [path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."]
    if not images:
        raise UserError(f"{folder}: found no images, wanted some that end in {', '.join(IMAGE_SUFFIXES)}")
    return sorted(images, key=lambda path: [int(part) if part.isdecimal() else part for part in _parts(path.name)])


def _parts(name: str) -> list[str]:
    """Texts and numbers in turn."""
    return re.split(r"(\d+)", name)
