"""Draw a clip as a small picture: its frames, then one row per label in a model's order."""

import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from lr2ppo.data.annotations import Clip, graded
from lr2ppo.data.frames import evenly_spaced, missing_frames, open_image, to_rgb, unusable_frames

Pixels = NDArray[np.uint8]
# By grade: not relevant, somewhat, relevant; then from blue to violet, for longer scales.
GRADE_COLOURS = "#8a8f98 #c98a2d #1b7f5c #17797f #1a739c #2668b3 #3f5cc0 #5a50c2 #7443ba #8a38a9 #9b2f8f".split()
INK, FAINT = "#222222", "#767b83"
DPI, WIDTH, MARGIN, ROW = 100, 560, 10, 16
# A thumbnail's maximum size: four fill the width.
FRAMES_SHOWN, THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT = 4, 129, 88
LABELS_SHOWN, LONGEST_TEXT, LONGEST_LABEL = 20, 84, 40
# Where a row's columns start: rank, grade and label in one text (each costs a millisecond); bar; score's right end.
LABEL, BAR, SCORE = MARGIN, 330, WIDTH - MARGIN
# A space as wide as a digit.
DIGIT_SPACE = "\N{FIGURE SPACE}"
BAR_WIDTH, BAR_HEIGHT = 150, 9


def grade_colour(grade: int) -> str:
    """Return a grade's colour; grades beyond the last colour share it."""
    return GRADE_COLOURS[min(grade, len(GRADE_COLOURS) - 1)]


def read_thumbnails(clip: Clip, frames_root: Path) -> list[Pixels]:
    """Read some of a clip's frames, evenly spaced and small; skip missing and unreadable ones."""
    thumbnails = []
    for position in evenly_spaced(len(clip.images), min(FRAMES_SHOWN, len(clip.images))):
        name = clip.images[position]
        single = Clip(clip.id, clip.labels, images=(name,))
        if missing_frames([single], frames_root) or unusable_frames([single], frames_root):
            continue
        # PIL raises many kinds of error for a damaged image.
        with suppress(Exception), open_image(frames_root / name) as image:
            # Decodes a JPEG at about twice the needed size only.
            image.draft(None, (2 * THUMBNAIL_WIDTH, 2 * THUMBNAIL_HEIGHT))
            thumbnail = to_rgb(image)
            thumbnail.thumbnail((THUMBNAIL_WIDTH, THUMBNAIL_HEIGHT))
            thumbnails.append(np.asarray(thumbnail))
    return thumbnails


def case_picture(clip: Clip, scores: NDArray[np.float64], thumbnails: list[Pixels]) -> Pixels:
    """Draw a clip's labels by `scores [labels]`, best first, coloured by grade: [height, width, 3]."""
    order = np.argsort(-scores, kind="stable")
    shown = order[:LABELS_SHOWN]
    frames_height = max((len(frame) for frame in thumbnails), default=0)
    top = 2 * ROW + MARGIN + (frames_height + MARGIN) * bool(thumbnails)
    height = top + ROW * (len(shown) + (len(order) > len(shown))) + MARGIN
    figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI)
    canvas = FigureCanvasAgg(figure)

    def write(x: float, y: float, text: str, colour: str = INK, align: str = "left") -> None:
        # Labels are user text: a dollar sign must not start a formula, nor a matplotlibrc that lies here LaTeX.
        figure.text(
            x / WIDTH, 1 - y / height, text, color=colour, fontsize=8, ha=align, va="center",
            parse_math=False, usetex=False,
        )  # fmt: skip

    write(MARGIN, MARGIN + ROW / 2, _cut(clip.id, LONGEST_TEXT))
    write(MARGIN, MARGIN + 1.5 * ROW, _cut(clip.description, LONGEST_TEXT), FAINT)
    left = MARGIN
    for frame in thumbnails:
        figure.figimage(frame, left, height - 2 * ROW - MARGIN - frames_height)
        left += frame.shape[1] + MARGIN // 2
    finite = scores[np.isfinite(scores)]
    lowest, highest = (finite.min(), finite.max()) if len(finite) else (0.0, 0.0)
    shares = np.nan_to_num(np.interp(scores, (lowest, highest), (0.0, 1.0)))
    for rank, label in enumerate(shown):
        grade, score, y = int(graded(clip)[label]), float(scores[label]), top + ROW * (rank + 0.5)
        colour = grade_colour(grade)
        write(LABEL, y, f"{rank + 1:{DIGIT_SPACE}>2}    {grade}    {_cut(clip.labels[label], LONGEST_LABEL)}", colour)
        corner, length = (BAR / WIDTH, 1 - (y + BAR_HEIGHT / 2) / height), 1 + BAR_WIDTH * shares[label]
        figure.add_artist(Rectangle(corner, length / WIDTH, BAR_HEIGHT / height, color=colour, linewidth=0))
        write(SCORE, y, f"{score:.3f}", colour, "right")
    if len(order) > len(shown):
        write(LABEL, top + ROW * (len(shown) + 0.5), f"and {len(order) - len(shown)} more", FAINT)
    # A character missing from the font is drawn as a box, which is enough.
    with warnings.catch_warnings(action="ignore"):
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _cut(text: str, longest: int) -> str:
    """Put a text on one line and cut it to at most `longest` characters."""
    text = " ".join(text.split())
    return text if len(text) <= longest else f"{text[: longest - 2]}.."
