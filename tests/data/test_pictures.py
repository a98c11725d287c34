"""Pictures and videos become what a viewer shows: upright, of 8 bits a channel, laid on white."""

import contextlib
import os
import struct
import subprocess
import sys
import tracemalloc
import weakref
import zlib
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from lr2ppo.data.annotations import Clip
from lr2ppo.data.frames import prepare_frames, read_frames, read_image, require_frames, sort_by_name
from lr2ppo.errors import UserError
from lr2ppo.evaluation.pictures import read_thumbnails
from tests.conftest import REPOSITORY

SHADES = np.arange(256, dtype=np.uint8).reshape(8, 32)
PICTURE = Image.fromarray(SHADES)
ORIENTATION = 0x0112
# Each quarter has its own shade.
UPRIGHT = Image.fromarray(np.array([[0, 85], [170, 255]], np.uint8).repeat(8, axis=0).repeat(32, axis=1)).convert("RGB")
# How to store the upright picture for each orientation of EXIF: the inverse of how a viewer turns it.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def shades_of(image: Image.Image) -> NDArray[np.uint8]:
    """The shades of an RGB picture without colours."""
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def decode(image: Image.Image) -> Image.Image:
    """Give a picture as the Python API takes it."""
    return read_frames(image, np.arange)[0]


def in_two_ways(path: Path) -> list[Image.Image]:
    """Read a picture's file by its path, and as a PIL image."""
    with Image.open(path) as opened:
        return [read_image(path), decode(opened)]


def big_endian(values: NDArray[Any]) -> NDArray[Any]:
    return values.astype(">u2")


DEEP: dict[str, Callable[[NDArray[np.int64]], NDArray[Any]]] = {
    "png": lambda values: (values * 257).astype(np.uint16),
    "tif": lambda values: (values * 257).astype(np.uint16),
    "12 bits.png": lambda values: (values * 4095 / 255).round().astype(np.uint16),
    "10 bits.png": lambda values: (values * 1023 / 255).round().astype(np.uint16),
    "8 bits.tif": lambda values: values.astype(np.uint16),
    "big endian.tif": lambda values: big_endian(values * 257),
    "24 bits.tif": lambda values: (values * 65793).astype(np.int32),
    "negative.tif": lambda values: (values * 5 - 700).astype(np.int32),
    "unit.tif": lambda values: (values / 255).astype(np.float32),
    "float.tif": lambda values: values.astype(np.float32),
    "float 16 bits.tif": lambda values: (values * 257).astype(np.float32),
    "negative float.tif": lambda values: (values / 100 - 1).astype(np.float32),
}


@pytest.mark.parametrize("name", DEEP)
def test_a_picture_of_more_than_8_bits_is_that_of_8_bits(tmp_path: Path, name: str) -> None:
    path = tmp_path / name.rpartition(" ")[2]
    path = path if path.suffix else tmp_path / f"picture.{path.name}"
    deep = Image.fromarray(DEEP[name](SHADES.astype(np.int64)))
    deep.save(path)
    for found in [*in_two_ways(path), decode(deep)]:
        np.testing.assert_array_equal(shades_of(found), SHADES)


def test_unsigned_numbers_of_32_bits_are_not_read_as_negative(tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray((SHADES.astype(np.uint32) * 16843009).view(np.int32)).save(path)
    # PIL writes signed numbers: in the file's header, change their kind from 2 to 1.
    signed, unsigned = (struct.pack("<HHIH", 339, 3, 1, kind) for kind in (2, 1))
    assert path.read_bytes().count(signed) == 1
    path.write_bytes(path.read_bytes().replace(signed, unsigned))
    for found in in_two_ways(path):
        np.testing.assert_array_equal(shades_of(found), SHADES)


RAMP: NDArray[np.float32] = (SHADES / 255).astype(np.float32)
PFM_IS_READ = pytest.mark.skipif(".pfm" not in Image.registered_extensions(), reason="PIL before 10.3 reads no PFM")


def highlighted(*values: float) -> NDArray[np.float32]:
    """Floats from 0 to 1, of which the last ones are above."""
    pixels = RAMP.copy()
    pixels.flat[-len(values) :] = values
    return pixels


def write_float(path: Path, pixels: NDArray[np.float32]) -> Path:
    if path.suffix == ".pfm":
        header = f"Pf\n{pixels.shape[1]} {pixels.shape[0]}\n-1.0\n"
        path.write_bytes(header.encode() + pixels[::-1].astype("<f4").tobytes())
    else:
        Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("name", ["bright.tif", pytest.param("bright.pfm", marks=PFM_IS_READ)])
@pytest.mark.parametrize("highlights", [(1.004,), (1.5,), (40,), (1e30,), (1.2, 3, 9, 60, 800) * 8])
def test_highlights_above_1_do_not_darken_a_float_picture(
    tmp_path: Path, name: str, highlights: tuple[float, ...]
) -> None:
    path = write_float(tmp_path / name, highlighted(*highlights))
    wanted = SHADES.copy()
    wanted.flat[-len(highlights) :] = 255
    np.testing.assert_array_equal(shades_of(read_image(path)), wanted)


@pytest.mark.parametrize("ringing", [(-0.004, 1.004), (-0.4, 1.4), (-2, 50)])
def test_what_resampling_adds_below_0_and_above_1_is_cut_off(ringing: tuple[float, float]) -> None:
    pixels = RAMP.copy()
    pixels[0, 0], pixels[-1, -1] = ringing
    np.testing.assert_array_equal(shades_of(decode(Image.fromarray(pixels))), SHADES)


def test_a_bright_float_picture_that_is_white_up_to_rounding_is_white() -> None:
    paper = np.full((8, 32), np.nextafter(np.float32(1), np.float32(2)))
    assert (shades_of(decode(Image.fromarray(paper))) == 255).all()


@pytest.mark.parametrize("brightest", [200, 255, 258.3])
def test_floats_up_to_255_keep_their_shades_when_resampled(brightest: float) -> None:
    pixels = (RAMP * 199.7).astype(np.float32)
    pixels[-1, -1] = brightest
    wanted = pixels.clip(0, 255).round()
    np.testing.assert_array_equal(shades_of(decode(Image.fromarray(pixels))), wanted)


def test_a_float_picture_of_8_bits_that_is_nearly_black_stays_so() -> None:
    pixels = np.ones((8, 32), np.float32)
    pixels[4, 10:14] = 200
    np.testing.assert_array_equal(shades_of(decode(Image.fromarray(pixels))), pixels)


@pytest.mark.parametrize("shade", [0, -5, 3_000_000_000_000])
def test_a_plain_picture_of_any_number_is_decoded(shade: float) -> None:
    assert decode(Image.new("F", (4, 4), shade)).mode == "RGB"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_picture_with_nan_or_infinity_is_refused(tmp_path: Path, value: float) -> None:
    pixels = (SHADES / 255).astype(np.float32)
    pixels[3, 3] = value
    Image.fromarray(pixels).save(tmp_path / "hole.tif")
    with pytest.raises(UserError, match=r"hole\.tif: is not a readable image: has pixels that are NaN or infinite"):
        read_image(tmp_path / "hole.tif")
    with pytest.raises(UserError, match="frame 0: has pixels that are NaN or infinite"):
        decode(Image.fromarray(pixels))


def assert_close(image: Image.Image, wanted: NDArray[np.uint8]) -> None:
    found = np.asarray(image)
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).mean() < 12


@pytest.mark.parametrize("name", ["phone.jpg", "phone.png", "phone.webp", "phone.tif", "packed.tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_phone_picture_is_turned_upright(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    options: Any = {"compression": "tiff_lzw"} if name == "packed.tif" else {}
    UPRIGHT.transpose(STORED[orientation]).save(tmp_path / name, exif=exif, **options)
    for found in in_two_ways(tmp_path / name):
        assert_close(found, np.asarray(UPRIGHT))


def test_a_deep_phone_picture_is_turned_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(np.rot90(SHADES.astype(np.uint16) * 257)).save(tmp_path / "deep.png", exif=exif)
    for found in in_two_ways(tmp_path / "deep.png"):
        np.testing.assert_array_equal(shades_of(found), SHADES)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0no tags at all"])
@pytest.mark.filterwarnings("ignore")
def test_a_picture_with_damaged_exif_data_is_as_stored(tmp_path: Path, exif: bytes) -> None:
    PICTURE.save(tmp_path / "damaged.jpg", exif=exif)
    PICTURE.save(tmp_path / "plain.jpg")
    assert read_image(tmp_path / "damaged.jpg").tobytes() == read_image(tmp_path / "plain.jpg").tobytes()


def left_half_transparent(mode: str) -> Image.Image:
    """A black picture whose left half is transparent."""
    alpha = Image.new("L", (32, 8), 255)
    alpha.paste(0, (0, 0, 16, 8))
    grey = Image.merge("LA", [Image.new("L", (32, 8)), alpha])
    if mode == "PA":
        # PIL cannot convert to it in all versions.
        palette = Image.new("PA", (32, 8))
        palette.putpalette([0, 0, 0])
        palette.putalpha(alpha)
        return palette
    if mode == "P":
        return grey.convert("RGBA").quantize(2)
    return grey if mode == "LA" else grey.convert("RGBA" if mode == "RGBa" else mode).convert(mode)


WHITE_AND_BLACK = np.repeat([[255, 0]], [16, 16], axis=1).repeat(8, axis=0)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "La", "PA", "P"])
def test_alpha_is_laid_on_white(mode: str) -> None:
    image = left_half_transparent(mode)
    assert image.mode == mode
    np.testing.assert_array_equal(shades_of(decode(image)), WHITE_AND_BLACK)


@pytest.mark.parametrize("name", ["alpha.png", "alpha.webp", "alpha.tif", "alpha.gif"])
def test_files_with_alpha_are_laid_on_white(tmp_path: Path, name: str) -> None:
    lossless: Any = {"lossless": True} if name == "alpha.webp" else {}
    left_half_transparent("RGBA").save(tmp_path / name, **lossless)
    for found in in_two_ways(tmp_path / name):
        np.testing.assert_array_equal(shades_of(found), WHITE_AND_BLACK)


def test_half_transparent_black_on_white_is_grey() -> None:
    assert decode(Image.new("RGBA", (4, 4), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)


@pytest.mark.parametrize(
    ("mode", "colour", "key"),
    [("L", 9, 9), ("RGB", (9, 9, 9), (9, 9, 9)), ("P", 1, 1), ("P", 1, b"\xff\0"), ("1", 0, 0)],
)
def test_a_colour_that_stands_for_transparent_becomes_white(tmp_path: Path, mode: str, colour: Any, key: Any) -> None:
    image = Image.new(mode, (32, 8), colour)
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    other: Any = {"RGB": (0, 0, 0), "1": 255}.get(mode, 0)
    image.paste(other, (16, 0, 32, 8))
    image.save(tmp_path / "key.png", transparency=key)
    wanted = np.full((8, 32), 255) if mode == "1" else WHITE_AND_BLACK
    for found in in_two_ways(tmp_path / "key.png"):
        np.testing.assert_array_equal(shades_of(found), wanted)


def test_a_transparent_shade_of_16_bits_becomes_white() -> None:
    image = Image.fromarray(np.repeat([[300, 0, 65535]], [16, 8, 8], axis=1).repeat(8, axis=0).astype(np.uint16))
    image.info["transparency"] = 300
    wanted = np.repeat([[255, 0, 255]], [16, 8, 8], axis=1).repeat(8, axis=0)
    np.testing.assert_array_equal(shades_of(decode(image)), wanted)


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp"])
def test_of_an_animation_the_first_frame_is_laid_on_white(tmp_path: Path, name: str) -> None:
    more = [Image.new("RGBA", (32, 8), (50 * number, 0, 0, 100)) for number in range(1, 3)]
    lossless: Any = {"lossless": True} if name == "moving.webp" else {}
    left_half_transparent("RGBA").save(tmp_path / name, save_all=True, append_images=more, **lossless)
    for found in in_two_ways(tmp_path / name):
        np.testing.assert_array_equal(shades_of(found), WHITE_AND_BLACK)


@pytest.mark.parametrize("has_other", [True, False])
def test_of_an_animated_png_the_picture_for_other_programs_is_no_frame(tmp_path: Path, has_other: bool) -> None:
    pictures = [Image.new("L", (32, 8), 50 * number) for number in range(4)]
    pictures[0].save(tmp_path / "moving.png", save_all=True, append_images=pictures[1:], default_image=has_other)
    found = read_frames(tmp_path / "moving.png", np.arange)
    assert [int(shades_of(each)[0, 0]) for each in found] == ([50, 100, 150] if has_other else [0, 50, 100, 150])


@pytest.mark.parametrize("mode", ["RGBA", "RGB", "LA"])
@pytest.mark.parametrize("blend", [PngImagePlugin.Blend.OP_SOURCE, PngImagePlugin.Blend.OP_OVER])
def test_transparent_frames_of_an_animated_png_that_are_blended_over_others_are_refused(
    tmp_path: Path, mode: str, blend: int
) -> None:
    clear = Image.new("RGBA", (32, 8), (2, 2, 2, 128)).convert(mode)
    black = Image.new("RGBA", (32, 8), (0, 0, 0, 255)).convert(mode)
    black.save(tmp_path / "over.png", save_all=True, append_images=[clear], blend=blend)
    if mode != "RGB" and blend == PngImagePlugin.Blend.OP_OVER:
        with pytest.raises(UserError, match="has frames that are blended over others"):
            read_frames(tmp_path / "over.png", np.arange)
        # The first frame lies on nothing.
        assert shades_of(read_frames(tmp_path / "over.png", lambda _: np.array([0]))[0]).max() == 0
    else:
        shades = [int(shades_of(each)[0, 0]) for each in read_frames(tmp_path / "over.png", np.arange)]
        assert shades == [0, 2 if mode == "RGB" else 128]


@pytest.mark.parametrize("disposal", PngImagePlugin.Disposal)
@pytest.mark.parametrize("is_whole", [True, False])
def test_an_animated_png_that_clears_parts_of_an_opaque_picture_is_refused(
    tmp_path: Path, disposal: int, is_whole: bool
) -> None:
    # PIL writes black only where it would not read it anyway.
    grey, changed = Image.new("RGB", (32, 8), (90, 90, 90)), Image.new("RGB", (32, 8))
    changed.paste((200, 200, 200), (0, 0, 32 if is_whole else 16, 8))
    grey.save(tmp_path / "clears.png", save_all=True, append_images=[changed], disposal=disposal)
    if disposal == PngImagePlugin.Disposal.OP_NONE or is_whole:
        shades = shades_of(read_frames(tmp_path / "clears.png", np.arange)[1])
        assert (shades[0, 0], shades[0, -1]) == (200, 200 if is_whole else 0)
    else:
        with pytest.raises(UserError, match="has frames that leave parts of the picture empty"):
            read_frames(tmp_path / "clears.png", np.arange)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "CMYK", "YCbCr", "HSV"])
def test_an_ordinary_picture_keeps_its_bytes(mode: str) -> None:
    image = Image.merge("RGB", [PICTURE, PICTURE.rotate(180), Image.new("L", (32, 8), 90)]).convert(mode)
    assert decode(image).tobytes() == image.convert("RGB").tobytes()


def test_thumbnails_are_shown_the_same_way(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    PICTURE.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.png", exif=exif)
    Image.fromarray(SHADES.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    shown = read_thumbnails(Clip("c", ("a",), images=("phone.png", "deep.png")), tmp_path)
    assert [each.shape for each in shown] == [(8, 32, 3)] * 2
    for each in shown:
        np.testing.assert_array_equal(each[..., 0], SHADES)


def test_a_damaged_picture_given_as_a_pil_image_is_refused_by_its_place() -> None:
    file = BytesIO()
    PICTURE.resize((256, 64)).save(file, "PNG")
    cut = Image.open(BytesIO(file.getvalue()[:-60]))
    with pytest.raises(UserError, match="frame 1: "):
        read_frames([PICTURE, cut], np.arange)


def test_a_length_that_a_damaged_picture_names_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    PICTURE.save(path)
    content = path.read_bytes()
    place = content.index(b"IDAT") - 4
    path.write_bytes(content[:place] + (2**31 - 1).to_bytes(4, "big") + content[place + 4 :])
    tracemalloc.start()
    try:
        with contextlib.suppress(UserError):
            read_frames(path, np.arange)
        assert tracemalloc.get_traced_memory()[1] < 2**28
    finally:
        tracemalloc.stop()


READS_EACH = """
import sys
import weakref
import zlib
from pathlib import Path
import numpy as np
from lr2ppo.data.frames import open_image, read_frames
from lr2ppo.errors import UserError

folder = Path(sys.argv[1])
def read_header(path, choose):
    with open_image(path):
        pass

reads = [read_frames] * 4 + [read_header]
given = [folder / "pipe.jpg", folder / "pipe.mp4", folder, [folder / "pipe.jpg"], folder / "pipe.jpg"]
for read, frames in zip(reads, given, strict=True):
    try:
        read(frames, np.arange)
    except (UserError, ValueError) as error:
        print(error)
"""


def test_a_named_pipe_called_like_a_picture_is_refused_without_waiting(tmp_path: Path) -> None:
    for name in ("pipe.jpg", "pipe.mp4"):
        os.mkfifo(tmp_path / name)
    command = [sys.executable, "-c", READS_EACH, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    messages = done.stdout.splitlines()
    assert [message.rpartition("pipe.")[2][3:].partition(";")[0] for message in messages[:2]] == [
        ": is neither a file nor a folder"
    ] * 2
    assert len(messages) == 5
    assert all("is a named pipe, wanted a regular file" in message for message in messages[2:])
    with pytest.raises(UserError, match=r"no file pipe\.jpg"):
        require_frames([Clip("c", ("a",), images=("pipe.jpg",))], tmp_path)


@pytest.mark.parametrize(
    "frames", [5, {"a.jpg"}, {"a.jpg": 1}, b"a.jpg", object(), np.array(5), [[PICTURE]], "x" * 300]
)
def test_what_is_no_frames_is_refused(frames: Any) -> None:
    with pytest.raises(UserError):
        read_frames(frames, np.arange)


CORNERS = np.zeros((32, 64, 3), np.uint8)
CORNERS[:8, :16], CORNERS[:8, -16:], CORNERS[-8:, :16] = 255, 160, 80
MATRICES = {
    "as it is": (1, 0, 0, 1),
    "clockwise": (0, 1, -1, 0),
    "upside down": (-1, 0, 0, -1),
    "counterclockwise": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "mirrored down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed back": (0, -1, -1, 0),
}


def write_corners(path: Path, codec: str = "mpeg4", pixels: str = "yuv420p", **options: Any) -> Path:
    """Write a video of a picture with three bright corners."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, pixels
        stream.metadata.update(options.get("tags", {}))
        source = options.get("source", av.VideoFrame.from_ndarray(CORNERS, format="rgb24"))
        for number in range(3):
            frame = source.reformat(format=pixels)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def put_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Set the display matrix of a video in an mp4 file."""
    content = path.read_bytes()
    header = content.index(b"tkhd")
    place = content.index(struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30), header)
    matrix = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:place] + matrix + content[place + len(matrix) :])


def displayed(a: int, b: int, c: int, d: int) -> NDArray[np.uint8]:
    """The picture with the pixel at (x, y) moved to (a x + c y, b x + d y), by its definition."""
    rows, columns = np.indices(CORNERS.shape[:2])
    x, y = a * columns + c * rows, b * columns + d * rows
    shown = np.zeros((np.ptp(y) + 1, np.ptp(x) + 1, 3), np.uint8)
    shown[y - y.min(), x - x.min()] = CORNERS
    return shown


@pytest.mark.parametrize("name", MATRICES)
def test_a_video_recorded_with_a_turned_phone_is_turned(tmp_path: Path, name: str) -> None:
    path = write_corners(tmp_path / "phone.mp4")
    put_matrix(path, *MATRICES[name])
    for frame in read_frames(path, lambda count: np.array([0, count - 1])):
        assert_close(frame, displayed(*MATRICES[name]))


def test_a_video_that_names_its_rotation_in_a_tag_is_turned(tmp_path: Path) -> None:
    path = write_corners(tmp_path / "old.mkv", tags={"rotate": "90"})
    assert_close(read_frames(path, np.arange)[0], displayed(*MATRICES["clockwise"]))


@pytest.mark.parametrize("pixels", ["yuv420p10le", "gray16le", "gbrp16le"])
def test_a_video_of_more_than_8_bits_has_the_shades_of_8_bits(tmp_path: Path, pixels: str) -> None:
    path = write_corners(tmp_path / "deep.mkv", "ffv1", pixels)
    for frame in read_frames(path, np.arange):
        assert_close(frame, CORNERS)


def test_a_video_with_alpha_is_laid_on_white(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    source = av.VideoFrame.from_ndarray(np.asarray(left_half_transparent("RGBA").resize((64, 32))), format="rgba")
    path = write_corners(tmp_path / "alpha.mkv", "ffv1", "bgra", source=source)
    wanted = WHITE_AND_BLACK.repeat(2, axis=1).repeat(4, axis=0)[..., None].repeat(3, axis=2)
    assert_close(read_frames(path, np.arange)[0], wanted.astype(np.uint8))


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_a_transparent_webm_is_refused(tmp_path: Path, codec: str) -> None:
    """Its transparency is in a second layer, which the decoder leaves out."""
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "alpha.webm"), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"auto-alt-ref": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuva420p"
        stream.metadata["alpha_mode"] = "1"
        picture = np.asarray(left_half_transparent("RGBA").resize((64, 32)))
        frame = av.VideoFrame.from_ndarray(picture, format="rgba").reformat(format="yuva420p")
        container.mux([*stream.encode(frame), *stream.encode()])
    with pytest.raises(UserError, match=r"found transparency in VP[89], which cannot be read"):
        read_frames(tmp_path / "alpha.webm", np.arange)


@pytest.mark.parametrize("aspect", [Fraction(2, 1), Fraction(1, 2)])
def test_a_video_of_pixels_that_are_no_squares_is_stretched(tmp_path: Path, aspect: Fraction) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = aspect
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 64, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    assert read_frames(tmp_path / "wide.mp4", np.arange)[0].size == (int(64 * aspect), 32)


def test_a_video_cut_without_new_encoding_gives_the_frames_that_a_player_shows(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "whole.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for number in range(10):
            shade = np.full((32, 64, 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        container.mux(stream.encode(None))
    with av.open(str(tmp_path / "whole.mp4")) as whole, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        source = whole.streams.video[0]
        # Its name in versions of PyAV from 14, and before.
        copied = cut.add_stream_from_template(source) if hasattr(cut, "add_stream_from_template") else None
        copied = copied or cut.add_stream(template=source)
        start = int(4 / 10 / source.time_base)
        for packet in whole.demux(source):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, copied
                cut.mux(packet)
    shades = [np.asarray(frame).mean() for frame in read_frames(tmp_path / "cut.mp4", np.arange)]
    np.testing.assert_allclose(shades, [80, 100, 120, 140, 160, 180], atol=4)


def test_a_frame_of_a_video_that_is_larger_than_its_header_says_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "grows.avi"), "w") as container:
        stream = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
        for number in range(4):
            content = BytesIO()
            Image.new("RGB", (640, 640) if number else (64, 64), "red").save(content, "JPEG")
            packet = av.Packet(content.getvalue())
            packet.stream, packet.pts, packet.dts, packet.is_keyframe = stream, number, number, True
            container.mux(packet)
    assert [frame.size for frame in read_frames(tmp_path / "grows.avi", np.arange)][-1] == (640, 640)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600 * 600)
    with pytest.raises(UserError, match=r"grows\.avi: is not a readable video"):
        read_frames(tmp_path / "grows.avi", np.arange)


def test_each_frame_is_prepared_before_the_next_is_decoded(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        PICTURE.save(path)
    read: list[weakref.ref[Image.Image]] = []

    def prepare(image: Image.Image) -> tuple[int, int]:
        assert all(earlier() is None for earlier in read)
        read.append(weakref.ref(image))
        return image.size

    for frames in (paths, tmp_path, write_corners(tmp_path / "clip.mkv")):
        read.clear()
        sizes = prepare_frames(frames, np.arange, prepare)
        assert len(sizes) == len(read) == 3


def test_too_little_memory_is_no_fault_of_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> None:
        raise MemoryError

    PICTURE.save(tmp_path / "0.png")
    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    for read in (read_image, lambda path: read_frames(path, np.arange), lambda path: read_frames([path], np.arange)):
        with pytest.raises(MemoryError):
            read(tmp_path / "0.png")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_read_as_a_video(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"animation.{kind.lower()}"
    shades = [Image.new("RGB", (32, 16), (50 * number,) * 3) for number in range(5)]
    shades[0].save(
        path, kind, save_all=True, append_images=shades[1:], **({"lossless": True} if kind == "WEBP" else {})
    )
    found = read_frames(path, lambda count: np.array([count - 1, 1, 1, 0]))
    assert [int(shades_of(frame)[0, 0]) for frame in found] == [200, 50, 50, 0]


def test_an_animation_that_would_take_minutes_to_decode_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "long.gif"
    shades = [Image.new("RGB", (20, 10), (40 * number,) * 3) for number in range(6)]
    shades[0].save(path, save_all=True, append_images=shades[1:])
    monkeypatch.setattr("lr2ppo.data.frames.MOST_ANIMATED_PIXELS", 1000)
    assert len(read_frames(path, lambda _: np.arange(5))) == 5
    with pytest.raises(
        UserError, match=r"long\.gif: found 6 pictures of 20 x 10 pixels, wanted at most 1,000 pixels up"
    ):
        read_frames(path, lambda _: np.arange(6))


def test_a_tiff_of_several_pages_is_refused_instead_of_reading_the_first(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "stack.tif", save_all=True, append_images=[PICTURE.rotate(180)])
    PICTURE.save(tmp_path / "page.tif")
    with pytest.raises(
        UserError, match=r"stack\.tif: found several pages, wanted one picture; save each page as a file"
    ):
        read_frames(tmp_path / "stack.tif", np.arange)
    np.testing.assert_array_equal(shades_of(read_frames(tmp_path / "page.tif", np.arange)[0]), SHADES)


def write_png(path: Path, header: tuple[int, ...], rows: list[bytes], key: bytes) -> Path:
    """Write a PNG file of a header, rows of pixels, and a colour that stands for transparent."""
    parts = {
        b"IHDR": struct.pack(">IIBBBBB", *header, 0, 0, 0),
        b"tRNS": key,
        b"IDAT": zlib.compress(b"".join(b"\0" + row for row in rows)),
        b"IEND": b"",
    }
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts.items()
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def assert_refused(path: Path, message: str) -> None:
    """A picture is refused by its header, when it is decoded, and as a PIL image."""
    with pytest.raises(UserError, match=message):
        require_frames([Clip("c", ("a",), images=(path.name,))], path.parent)
    with pytest.raises(UserError, match=message):
        read_image(path)
    with Image.open(path) as opened, pytest.raises(UserError, match=message):
        decode(opened)


@pytest.mark.parametrize("key", [0x8000, 0x0000])
def test_a_transparent_colour_of_16_bits_that_pil_cannot_find_is_refused(tmp_path: Path, key: int) -> None:
    black, colour = bytes(6 * 8), struct.pack(">HHH", key, key, key)
    path = write_png(tmp_path / "key.png", (8, 8, 16, 2), [black] * 8, colour)
    assert_refused(path, "has a transparent colour of 16 bits a channel, wanted an alpha channel, or 8 bits a channel")


def test_a_transparent_colour_of_16_bits_of_a_decoded_picture_is_refused(tmp_path: Path) -> None:
    path = write_png(tmp_path / "key.png", (8, 8, 16, 2), [bytes(6 * 8)] * 8, b"\x80\0" * 3)
    with Image.open(path) as opened, pytest.raises(UserError, match="frame 0: has a transparent colour of 16 bits"):
        decode(opened.resize((4, 4)))


@pytest.mark.parametrize(("bits", "colours", "key"), [(2, 0, 1), (4, 0, 15), (16, 2, 200)])
@pytest.mark.parametrize("of_file", [True, False])
def test_a_decoded_picture_that_no_longer_tells_the_bits_of_its_transparent_colour_is_refused(
    tmp_path: Path, bits: int, colours: int, key: int, of_file: bool
) -> None:
    row = bytes(8 * bits * (3 if colours else 1) // 8)
    path = write_png(tmp_path / "key.png", (8, 8, bits, colours), [row] * 8, struct.pack(">H", key) * (colours + 1))
    with Image.open(path) as opened:
        opened.load()
        with pytest.raises(UserError, match="frame 0: is decoded and has a transparent colour"):
            decode(opened if of_file else opened.copy())


def test_a_tile_far_larger_than_its_picture_is_refused(tmp_path: Path) -> None:
    for side in (16, 22000):
        pixels = zlib.compress(bytes(256))
        tags = {256: 16, 257: 16, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 134, 325: len(pixels)}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
        (tmp_path / "tile.tif").write_bytes(header + pixels)
        assert len(header) == tags[324]
        if side == 16:
            read_image(tmp_path / "tile.tif")
    assert_refused(tmp_path / "tile.tif", "has tiles of 22000 x 22000 pixels")


@pytest.mark.parametrize("is_several", [False, True])
def test_a_progressive_picture_of_many_scans_is_refused_and_a_usual_one_is_read(
    tmp_path: Path, is_several: bool
) -> None:
    path = tmp_path / "scans.jpg"
    picture = PICTURE.resize((64, 64))
    # A JPEG of several pictures is another format to PIL.
    several: Any = {"format": "MPO", "save_all": True, "append_images": [picture]} if is_several else {}
    picture.save(path, progressive=True, **several)
    read_image(path)
    content = path.read_bytes()
    last = content.rindex(b"\xff\xda")
    path.write_bytes(content[:last] + content[last:-2] * 200 + content[-2:])
    with pytest.raises(UserError, match=r"has 2.. scans, wanted at most 100"):
        read_image(path)
    with Image.open(path) as opened, pytest.raises(UserError, match=r"frame 0: has 2.. scans"):
        decode(opened)


def write_planes(path: Path, planes: list[NDArray[Any]], photometric: int, packed: bool = False) -> Path:
    """Write a TIFF file of a plane for each channel."""
    stored = [zlib.compress(plane.tobytes()) if packed else plane.tobytes() for plane in planes]
    kind = {"u": 1, "i": 2}[planes[0].dtype.kind]
    (height, width), bits, count = planes[0].shape, 8 * planes[0].itemsize, len(planes)
    # 11 tags of 12 bytes after 10 bytes, then 4 bytes, then lists longer than a tag holds.
    lists = 10 + 11 * 12 + 4
    starts = np.cumsum([lists + 4 * 4 * count, *map(len, stored)]).tolist()
    values = {256: [width], 257: [height], 258: [bits] * count, 259: [8 if packed else 1], 262: [photometric]}
    values |= {273: starts[:-1], 277: [count], 278: [height], 279: [len(part) for part in stored]}
    values |= {284: [2], 339: [kind] * count}
    tags, more = b"", b""
    for tag, numbers in values.items():
        content = struct.pack(f"<{len(numbers)}I", *numbers)
        tags += struct.pack("<HHI", tag, 4, len(numbers))
        tags += content if len(numbers) == 1 else struct.pack("<I", lists + len(more))
        more += content if len(numbers) > 1 else b""
    header = struct.pack("<2sHIH", b"II", 42, 8, len(values)) + tags + bytes(4) + more
    path.write_bytes(header.ljust(starts[0], b"\0") + b"".join(stored))
    return path


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("packed", [False, True])
def test_a_tiff_of_separate_planes_is_read_right_or_refused(tmp_path: Path, bits: int, packed: bool) -> None:
    colours = np.stack([SHADES, SHADES[::-1], np.full_like(SHADES, 90)])
    planes = list(colours if bits == 8 else colours.astype("<u2") * 257)
    path = write_planes(tmp_path / "planes.tif", planes, 2, packed)
    if bits == 16 and not packed:
        assert_refused(path, "has separate planes .* wanted a PNG, or a TIFF with PlanarConfiguration 1")
    else:
        np.testing.assert_array_equal(np.asarray(read_image(path)), np.moveaxis(colours, 0, 2))


@pytest.mark.parametrize("photometric", [0, 6])
def test_separate_planes_whose_meaning_pil_ignores_are_refused(tmp_path: Path, photometric: int) -> None:
    planes = [SHADES] * (3 if photometric == 6 else 1)
    assert_refused(write_planes(tmp_path / "planes.tif", planes, photometric), "has separate planes")


@pytest.mark.parametrize("packed", [False, True])
def test_lab_in_separate_planes_whose_signs_pil_ignores_is_refused(tmp_path: Path, packed: bool) -> None:
    path = write_planes(tmp_path / "lab.tif", [SHADES] * 3, 8, packed)
    assert_refused(path, "has separate planes .* of Lab")


@pytest.mark.parametrize("packed", [False, True])
def test_a_tiff_of_signed_8_bits_is_refused(tmp_path: Path, packed: bool) -> None:
    path = write_planes(tmp_path / "signed.tif", [(SHADES.astype(int) - 128).astype(np.int8)], 1, packed)
    assert_refused(path, "has signed numbers of 8 bits, wanted unsigned ones, or signed ones of 16 bits")


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_transparent_shade_of_a_grey_picture_of_few_bits_is_white(tmp_path: Path, bits: int) -> None:
    levels = 2**bits
    grey = (np.arange(1024).reshape(4, 256) % levels).astype(np.uint8)
    rows = np.packbits(np.unpackbits(grey[..., None], axis=2)[..., 8 - bits :].reshape(4, -1), axis=1)
    path = write_png(tmp_path / "grey.png", (256, 4, bits, 0), [row.tobytes() for row in rows], struct.pack(">H", 1))
    wanted = np.where(grey == 1, 255, grey.astype(int) * 255 // (levels - 1))
    np.testing.assert_array_equal(shades_of(read_image(path)), wanted)


def test_a_deep_tiff_in_which_0_is_white_is_no_negative(tmp_path: Path) -> None:
    deep = Image.fromarray(65535 - SHADES.astype(np.uint16) * 257)
    deep.save(tmp_path / "deep.tif")
    content = (tmp_path / "deep.tif").read_bytes()
    old, new = struct.pack("<HHIHH", 262, 3, 1, 1, 0), struct.pack("<HHIHH", 262, 3, 1, 0, 0)
    assert content.count(old) == 1
    (tmp_path / "deep.tif").write_bytes(content.replace(old, new))
    np.testing.assert_array_equal(shades_of(read_image(tmp_path / "deep.tif")), SHADES)


def test_pictures_of_several_folders_are_sorted_by_folder_with_10_after_9() -> None:
    paths = [Path("c") / f"shot{shot}" / f"{frame}.png" for shot in (1, 2, 10) for frame in (9, 10)]
    assert sort_by_name(reversed(paths)) == paths


def test_a_clip_without_frames_needs_no_files(tmp_path: Path) -> None:
    require_frames([Clip("c", ("a",))], tmp_path)
