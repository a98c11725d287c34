"""Order a clip's labels with a run, and render the order as HTML: pure functions; all text is escaped."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from lr2ppo.inference.labels import RankedLabel, format_probability
from lr2ppo.inference.ranker import LabelRanker
from lr2ppo.runs.stages import STAGES, Stage

TEMPLATE = Path(__file__).with_name("template")
PAGES = Environment(
    loader=FileSystemLoader(TEMPLATE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
# The CSS class by the stage of a run's name; all others have `after`.
LOOKS = {"pointwise": "before", "reward": "judge"}
# A larger matrix would be slow and unreadable: only the first labels are shown.
MATRIX_LABELS = 24
# A cell's opacity for a certain preference; and the opacity from which its text turns light.
STRONGEST, LIGHT_TEXT = 0.92, 0.84

Frames = Path | list[Path]


@dataclass(frozen=True)
class Result:
    """The order of a clip's labels: by the run, by the run that it started from, and pairwise by its reward model.

    `preferences [n, n]`: for the first n labels of `after`, the probability that people put row before column. `start`
    is the name of the run that `before` is the order of.
    """

    run: str
    after: Sequence[RankedLabel]
    before: Sequence[RankedLabel] | None = None
    preferences: NDArray[np.floating[Any]] | None = None
    start: str = ""


@dataclass(frozen=True)
class RankRow:
    """One label in an order: its rank from 1, its bar's length in percent, and how many places it rose.

    `probability` is empty if the run has no calibration.
    """

    key: int
    label: str
    rank: int
    score: str
    probability: str
    bar: float
    rise: int = 0


@dataclass(frozen=True)
class Cell:
    """One pair of the matrix: the probability in percent that the row comes first, and its colour."""

    percent: int
    tone: str
    alpha: float
    light: bool


def rank_clip(ranker: LabelRanker, frames: Frames, labels: Sequence[str], description: str) -> Result:
    """Compute everything that the page shows of a clip; raises `UserError` if frames or labels cannot be used."""
    after = ranker.rank(frames, labels, description)
    start = ranker.before
    before = None if start is None else start.rank(frames, labels, description)
    preferences = None
    if ranker.has_preferences and len(labels) > 1:
        preferences = ranker.preferences(frames, [ranked.label for ranked in after[:MATRIX_LABELS]], description)
    return Result(ranker.name, after, before, preferences, "" if start is None else start.name)


def render_result(result: Result) -> str:
    """Render the result as HTML for the page; two orders are shown side by side."""
    after, before, preferences = result.after, result.before, result.preferences
    keys = {ranked.label: key for key, ranked in enumerate(after)}
    places = None if before is None else {ranked.label: at for at, ranked in enumerate(before)}
    labels = [ranked.label for ranked in after]
    return PAGES.get_template("result.html").render(
        run=result.run,
        look=LOOKS.get(result.run.partition("/")[0], "after"),
        titles=[_title(result.start), _title(result.run)],
        started=_short_title(result.start),
        after=order_rows(after, keys, places),
        before=None if before is None else order_rows(before, keys),
        labels=labels if preferences is None else labels[: len(preferences)],
        matrix=None if preferences is None else matrix_cells(preferences),
        agreements=None if preferences is None else agreements(result, preferences),
        uncalibrated=[order[0].probability is None for order in (before, after) if order is not None],
    )


def render_header(run: str, start: str | None) -> str:
    """Render the page's title, the run's name, and that of the run `start` it started from."""
    shown = "orders a clip's labels"
    if start is not None:
        shown = f"beside <code>{html.escape(start)}</code>, which it started from"
    return f"<h1>Label relevance ranking</h1><p><code>{html.escape(run)}</code> {shown}</p>"


def _stage(run: str) -> Stage | None:
    """The stage that a run's name starts with."""
    return STAGES.get(run.partition("/")[0])


def _title(run: str) -> str:
    stage = _stage(run)
    return run if stage is None else stage.title


def _short_title(run: str) -> str:
    """A run's stage, such as `stage 3`, for the middle of a sentence."""
    stage = _stage(run)
    return run if stage is None else stage.title.partition(":")[0].lower()


def order_rows(
    order: Sequence[RankedLabel], keys: dict[str, int], places: dict[str, int] | None = None
) -> list[RankRow]:
    """Return an order's rows, with how far each label rose from its position in `places`, if given."""
    scores = np.array([ranked.score for ranked in order], dtype=np.float64)
    span = np.ptp(scores)
    decimals = 2 if span >= 1 else 3 if span >= 0.1 else 4
    lengths = bar_lengths(scores).tolist()
    bars = [
        length if ranked.probability is None else 100 * ranked.probability
        for ranked, length in zip(order, lengths, strict=True)
    ]
    return [
        RankRow(
            key=keys[ranked.label],
            label=ranked.label,
            rank=at + 1,
            score=f"{ranked.score:z.{decimals}f}".replace("-", "\N{MINUS SIGN}"),
            probability="" if ranked.probability is None else format_probability(ranked.probability),
            bar=round(bars[at], 1),
            rise=0 if places is None else places[ranked.label] - at,
        )
        for at, ranked in enumerate(order)
    ]


def bar_lengths(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale from 2 percent for a list's lowest score to 100 for its highest: stage 3's scores have no fixed scale."""
    span = np.ptp(scores)
    return 2 + 98 * (scores - scores.min()) / span if span > 0 else np.full(len(scores), 100.0)


def matrix_cells(preferences: NDArray[np.floating[Any]]) -> list[list[Cell | None]]:
    """Return the matrix's cells; None on the diagonal."""
    return [
        [None if row == column else _cell(float(share)) for column, share in enumerate(shares)]
        for row, shares in enumerate(preferences)
    ]


def _cell(share: float) -> Cell:
    alpha = round(abs(share - 0.5) * 2 * STRONGEST, 2)
    ahead = share >= 0.5
    return Cell(round(share * 100), "ahead" if ahead else "behind", alpha, light=ahead and alpha >= LIGHT_TEXT)


def agreements(result: Result, preferences: NDArray[np.floating[Any]]) -> list[tuple[str, float]]:
    """Return the share of the matrix's pairs on which each order agrees with the reward model; a tie counts half."""
    places = {ranked.label: at for at, ranked in enumerate(result.after[: len(preferences)])}
    orders = [("this order", result.after)]
    if result.before is not None:
        orders = [(_short_title(result.start), result.before), (_short_title(result.run), result.after)]
    shares = []
    for name, order in orders:
        at = [places[ranked.label] for ranked in order if ranked.label in places]
        ahead = preferences[np.ix_(at, at)][np.triu_indices(len(at), 1)]
        shares.append((name, float(np.mean((np.sign(ahead - 0.5) + 1) / 2))))
    return shares


def ordinal(rank: int) -> str:
    """Format a rank as 1st, 2nd, 3rd, 4th and so on."""
    ending = "th" if rank % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(rank % 10, "th")
    return f"{rank}{ending}"


PAGES.filters["ordinal"] = ordinal
