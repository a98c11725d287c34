"""Some frames of a video file: found by their times and decoded one after another, so that no video is held whole."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lr2ppo.data.images import check_size
from lr2ppo.errors import UserError

# What ffmpeg may take a file for: no lists of other files and no addresses, which a file could lead it to.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf"


def read_video(path: Path, choose: Callable[[int], NDArray[np.int64]]) -> list[Image.Image]:
    """The frames of a video that `choose` takes of so many, as RGB images.

    Raises `UserError` where the file is no video, is damaged, or where PyAV is not installed.
    """
    with _open_video(path) as container:
        times = sorted(packet.pts for packet in container.demux(video=0) if packet.size and packet.pts is not None)
    if not times:
        raise UserError(f"{path}: found no frames whose time is told; convert it, to mp4 for example")
    positions = choose(len(times)).tolist()
    wanted = sorted({times[position] for position in positions})
    frames = _seek_each(path, wanted) or _play_through(path, wanted)
    if not frames:
        raise UserError(f"{path}: not one of its frames can be decoded; convert it, to mp4 for example")
    # A file cut short lacks the last ones of those that it names.
    return [frames[min(frames, key=lambda found: abs(found - times[position]))] for position in positions]


def _seek_each(path: Path, times: Sequence[int]) -> dict[int, Image.Image]:
    """The frames at some times, each decoded from the key frame before it; none where the file leads elsewhere."""
    frames = {}
    with _open_video(path) as container:
        for time in times:
            container.seek(time, stream=container.streams.video[0], backward=True)
            shown = container.decode(video=0)
            first = next(shown, None)
            # Files without an index, such as broadcasts, may lead to a later frame, or to one that needs others.
            if first is None or not first.key_frame or first.pts is None or first.pts > time:
                return {}
            frame = next((each for each in chain([first], shown) if each.pts is not None and each.pts >= time), None)
            if frame is not None:
                frames[time] = frame.to_image()
    return frames


def _play_through(path: Path, times: Sequence[int]) -> dict[int, Image.Image]:
    """The frames at some times, met while all of the video is decoded."""
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
        raise UserError(f"{path}: videos are read by PyAV, which is not here: pip install '.[video]'") from None
    try:
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
        with av.open(str(path.resolve()), options=options) as container:
            if not container.streams.video:
                raise UserError(f"{path}: found no pictures in it, wanted a video")
            stream = container.streams.video[0]
            check_size(stream.width, stream.height)
            yield container
    except (av.FFmpegError, ValueError) as error:
        raise UserError(f"{path}: is not a readable video: {error}; convert it, to mp4 for example") from None
