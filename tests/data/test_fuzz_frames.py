"""Broken pictures and videos are refused with one message, or read as RGB images of a usable size."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lr2ppo.data.frames import FORMATS, IMAGE_SUFFIXES, check_size, evenly_spaced, read_frames
from lr2ppo.errors import UserError
from tests.helpers.fuzz import Case, damaged, fuzzed, may_refuse, run_apart

VIDEOS = {"mp4": "mpeg4", "avi": "mpeg4", "mkv": "mpeg4", "webm": "libvpx", "ts": "mpeg2video"}


def write_valid(root: Path) -> None:
    """Write a small picture of every format, and a short video in several containers."""
    dice = np.random.default_rng(0)
    pixels = dice.integers(0, 256, size=(8, 24, 32, 3), dtype=np.uint8)
    (root / "pictures").mkdir()
    for name in FORMATS:
        Image.fromarray(pixels[0]).save(root / "pictures" / name, name)
    (root / "videos").mkdir()
    for suffix, codec in VIDEOS.items():
        write_video(root / "videos" / f"v.{suffix}", codec, pixels)


def write_video(path: Path, codec: str, pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=8)
        stream.width, stream.height, stream.pix_fmt = pixels.shape[2], pixels.shape[1], "yuv420p"
        for row in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(row, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("valid")
    write_valid(root)
    return root


def read_or_refuse(path: Path) -> None:
    with may_refuse(path):
        images = read_frames(path, lambda found: evenly_spaced(found, 3))
        assert len(images) == 3
        for image in images:
            check_size(*image.size)
            assert image.mode == "RGB"


def any_picture(folder: Path, valid: Path, data: st.DataObject) -> None:
    path = folder / f"picture{data.draw(st.sampled_from(IMAGE_SUFFIXES))}"
    source = valid / "pictures" / data.draw(st.sampled_from(FORMATS))
    path.write_bytes(data.draw(damaged(source.read_bytes())))
    read_or_refuse(path)


def any_video(folder: Path, valid: Path, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(list(VIDEOS)))
    path = folder / f"video.{suffix}"
    path.write_bytes(data.draw(damaged((valid / "videos" / f"v.{suffix}").read_bytes())))
    read_or_refuse(path)


CASES: dict[str, Case] = {"pictures": any_picture, "videos": any_video}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_pictures_and_videos_of_any_bytes(tmp_path: Path, valid: Path, case: Case) -> None:
    """Runs in a separate process, which a damaged file can crash; the folder then holds that file."""

    @fuzzed(200)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        case(tmp_path, valid, data)

    run_apart(check)


def test_a_video_of_an_unknown_codec_is_refused(tmp_path: Path, valid: Path) -> None:
    content = (valid / "videos" / "v.mkv").read_bytes()
    (tmp_path / "video.mkv").write_bytes(content.replace(b"V_MPEG4/", b"V_XXXXX/"))
    with pytest.raises(UserError, match=r"video\.mkv: is not a readable video: its codec is unknown"):
        read_frames(tmp_path / "video.mkv", lambda found: evenly_spaced(found, 3))
