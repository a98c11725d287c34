"""Frames on disk: bad ones are refused by name before the first is decoded."""

import contextlib
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lr2ppo.data import Clip
from lr2ppo.data.frames import evenly_spaced, missing_frames, open_image, read_image, require_frames, unusable_frames
from lr2ppo.errors import UserError
from tests.helpers.fuzz import damaged, fuzzed, may_refuse


def write_image(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize(size).convert("RGB").save(path)
    return path


def png_of_size(width: int, height: int) -> bytes:
    """A PNG file of a few bytes whose header claims this size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_image(tmp_path / "data" / "frames" / "0.jpg")
    write_image(tmp_path / "elsewhere" / "1.jpg")
    return tmp_path / "data"


def faults_of(root: Path, *images: str) -> list[str]:
    return [fault.message for fault in unusable_frames([Clip("clip", ("a",), images=images)], root)]


@pytest.mark.parametrize("image", ["frames/0.jpg", "frames/../frames/0.jpg", "./frames//0.jpg", "frames/gone.jpg"])
def test_frames_in_the_folder_have_no_fault(root: Path, image: str) -> None:
    assert faults_of(root, image) == []


def test_the_folder_itself_may_be_a_link_and_links_may_stay_in_it(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    (root / "shots").symlink_to(root / "frames")
    assert faults_of(tmp_path / "link", "frames/0.jpg", "shots/0.jpg", str(root / "frames" / "0.jpg")) == []
    assert faults_of(root, str(tmp_path / "link" / "frames" / "0.jpg")) == []


def test_frames_outside_the_folder_are_refused_with_the_option_that_allows_them(root: Path, tmp_path: Path) -> None:
    (root / "linked.jpg").symlink_to(tmp_path / "elsewhere" / "1.jpg")
    (root / "image").symlink_to(tmp_path / "elsewhere")
    outside = ["../elsewhere/1.jpg", str(tmp_path / "elsewhere" / "1.jpg"), "linked.jpg", "image/1.jpg", "/etc/passwd"]
    with pytest.raises(UserError) as refused:
        require_frames([Clip(f"clip-{i}", ("a",), images=(image,)) for i, image in enumerate(outside)], root)
    assert "5 faults found; check --frames-root" in str(refused.value)
    for number, image in enumerate(outside):
        assert f"clip clip-{number}: {image} is at " in str(refused.value)
    assert "set --frames-root to the folder that holds the frames" in str(refused.value)
    assert faults_of(tmp_path, "data/image/1.jpg", "elsewhere/1.jpg") == []


def test_a_sibling_folder_with_the_same_prefix_is_outside(root: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "data-2" / "0.jpg")
    assert "outside" in faults_of(root, "../data-2/0.jpg")[0]


def test_a_circular_link_and_a_name_too_long_are_missing_files(root: Path) -> None:
    (root / "circle.jpg").symlink_to(root / "circle.jpg")
    names = ("circle.jpg", "x" * 300, "frames")
    assert missing_frames([Clip("clip", ("a",), images=names)], root) == list(names)
    assert faults_of(root, *names) == []


def test_a_root_that_is_a_circular_link_has_no_frames(tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(UserError, match=r"clip c: no file 0\.jpg"):
        require_frames([Clip("c", ("a",), images=("0.jpg",))], tmp_path / "circle")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is not an image of the formats JPEG, PNG"),
        (b"these are no pixels", "is not an image of the formats JPEG, PNG"),
        (b"%PDF-1.4", "is not an image of the formats JPEG, PNG"),
        (b"\xff\xd8\xff\xe0 nor these", "cannot be used: "),
    ],
)
def test_a_file_that_is_no_image_is_refused(root: Path, content: bytes, expected: str) -> None:
    (root / "frames" / "0.jpg").write_bytes(content)
    assert f"frames/0.jpg {expected}" in faults_of(root, "frames/0.jpg")[0]
    with pytest.raises(UserError, match=r"frames/0\.jpg: is not a readable image"):
        read_image(root / "frames" / "0.jpg")


def test_a_format_that_starts_other_programs_is_no_image(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*arguments: object, **options: object) -> None:
        raise AssertionError("a program was started")

    monkeypatch.setattr(subprocess, "check_call", start)
    Image.linear_gradient("L").save(root / "page.eps")
    (root / "page.eps").rename(root / "page.jpg")
    assert "is not an image" in faults_of(root, "page.jpg")[0]
    with pytest.raises(UserError, match="is not an image"):
        read_image(root / "page.jpg")


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_an_image_too_large_to_decode_is_refused_by_its_header(root: Path, side: int) -> None:
    (root / "bomb.png").write_bytes(png_of_size(side, side))
    assert f"bomb.png cannot be used: Image size ({side**2} pixels) exceeds limit" in faults_of(root, "bomb.png")[0]
    with pytest.raises(UserError, match=r"bomb\.png: is not a readable image: cannot be used: Image size"):
        read_image(root / "bomb.png")


def test_a_narrow_image_is_refused_since_scaling_makes_it_huge(root: Path) -> None:
    write_image(root / "wide.png", (100, 1))
    write_image(root / "narrow.png", (1, 101))
    assert faults_of(root, "wide.png", "narrow.png") == [
        "narrow.png has 1 x 101 pixels, wanted an aspect ratio of at most 100"
    ]


def test_an_image_cut_short_is_refused_when_it_is_decoded(root: Path) -> None:
    path = write_image(root / "frames" / "0.jpg", (64, 64))
    path.write_bytes(path.read_bytes()[:-40])
    assert faults_of(root, "frames/0.jpg") == []
    with pytest.raises(UserError, match=r"frames/0\.jpg: is not a readable image: .*truncated.*; replace it"):
        read_image(path)


def test_all_frames_at_fault_are_reported_at_once(root: Path) -> None:
    (root / "text.jpg").write_text("no image", encoding="utf-8")
    clips = [
        Clip("good", ("a",), images=("frames/0.jpg",)),
        Clip("bad", ("a",), images=("frames/0.jpg", "text.jpg", "../elsewhere/1.jpg")),
        Clip("gone", ("a",), images=("frames/0.jpg", "gone.jpg")),
    ]
    with pytest.raises(UserError) as refused:
        require_frames(clips, root)
    lines = str(refused.value).splitlines()
    assert "3 faults found" in lines[0]
    assert [line.split(": ")[0].strip() for line in lines[1:]] == ["clip gone", "clip bad", "clip bad"]


@given(available=st.integers(1, 500), wanted=st.integers(0, 40))
def test_evenly_spaced_frames_go_from_the_first_to_the_last_in_equal_steps(available: int, wanted: int) -> None:
    positions = evenly_spaced(available, wanted).tolist()
    assert len(positions) == wanted
    assert positions == sorted(positions)
    if wanted > 1:
        assert (positions[0], positions[-1]) == (0, available - 1)
        assert np.ptp(np.diff(positions)) <= 1
    if wanted >= available:
        assert set(positions) == set(range(available)) or wanted == 1


@pytest.mark.filterwarnings("ignore")
@fuzzed(150)
@given(data=st.data(), name=st.sampled_from(["a.jpg", "a.png", "a.gif", "a.webp", "a.tiff", "a.bmp"]))
def test_damaged_images_are_decoded_or_refused(tmp_path: Path, data: st.DataObject, name: str) -> None:
    path = write_image(tmp_path / name)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    with may_refuse(path):
        assert read_image(path).mode == "RGB"
    with contextlib.suppress(ValueError), open_image(path):
        pass
