"""Some frames of a video file: found by their times and decoded one after another, so that no video is held whole."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    frames: dict[int, Image.Image] = {}
    with _open_video(path) as container:
        for position in sorted(set(positions)):
            frame = _frame_at(container, times[position])
            if frame is not None:
                frames[position] = frame
    if not frames:
        raise UserError(f"{path}: not one of its frames can be decoded; convert it, to mp4 for example")
    # A file cut short lacks the last ones of those that it names.
    return [frames[min(frames, key=lambda found: abs(found - position))] for position in positions]


def _frame_at(container: Any, time: int) -> Image.Image | None:
    """The first frame shown at a time or after it; None where there is none."""
    container.seek(time, stream=container.streams.video[0], backward=True)
    for frame in container.decode(video=0):
        if frame.pts is not None and frame.pts >= time:
            picture: Image.Image = frame.to_image()
            return picture
    return None


@contextmanager
def _open_video(path: Path) -> Iterator[Any]:
    try:
        import av
    except ImportError:
        raise UserError(f"{path}: videos are read by PyAV, which is not here: pip install 'lr2ppo[video]'") from None
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
