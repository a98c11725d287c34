"""Parse and check labels, and format a ranked list for a terminal."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from reprlib import repr as shortened

import numpy as np

from lr2ppo.data.features.names import as_seen
from lr2ppo.errors import UserError
from lr2ppo.files import UNWRITABLE

BAR = 24


@dataclass(frozen=True)
class RankedLabel:
    """A label, its score, which orders the labels of a clip, and the probability that it is relevant.

    Scores of one clip are comparable, higher is more relevant. `probability` is comparable between clips, too: that
    people give the label a grade of at least 1, at least somewhat relevant, however high the scale's grades go. It
    rises with the score; None where the run has no calibration.
    """

    label: str
    score: float
    probability: float | None = None


def split_labels(text: str) -> list[str]:
    """Split comma-separated labels."""
    return [label.strip() for label in text.split(",")]


def check_texts(labels: Sequence[str]) -> None:
    """Raise `UserError` if labels are no list, tuple or array of at least one text."""
    is_list = isinstance(labels, list | tuple) or (isinstance(labels, np.ndarray) and labels.ndim == 1)
    if not is_list or not len(labels):
        raise UserError(f"labels: found {shortened(labels)}, wanted a list, tuple or array of at least one text")
    for place, label in enumerate(labels):
        if not isinstance(label, str) or UNWRITABLE.search(label):
            raise UserError(f"labels: found {shortened(label)} at place {place + 1}, wanted a text")


def check_labels(labels: Sequence[str]) -> None:
    """Raise `UserError` as `check_texts`, or if a label looks empty, is repeated, or looks like another one."""
    check_texts(labels)
    seen: dict[str, str] = {}
    for place, label in enumerate(labels):
        if not as_seen(label):
            raise UserError(f"labels: found {label!a} at place {place + 1}, wanted a text that is not empty")
        if (known := seen.setdefault(as_seen(label), label)) != label:
            raise UserError(f"labels: found {known!a} and {label!a}, which look the same, wanted each label once")
    repeated = [label for label, count in Counter(labels).items() if count > 1]
    if repeated:
        raise UserError(f"labels: found {', '.join(map(repr, repeated))} more than once, wanted each label once")


def format_ranking(ranked: Sequence[RankedLabel], full: str = "█") -> str:
    """Format a table of rank, label, score, probability if there is one, and a bar.

    A full bar is a probability of 1; without probabilities, bars are longest for the best and shortest for the worst.
    """
    shown = [_printable(each.label) for each in ranked]
    width = max(_columns(label) for label in ["label", *shown])
    best, worst = ranked[0].score, ranked[-1].score
    lines = [f"rank  label{' ' * (width - 5)}      score{'' if ranked[0].probability is None else '  relevant'}"]
    for rank, (label, each) in enumerate(zip(shown, ranked, strict=True), start=1):
        line = f"{rank:>4}  {label}{' ' * (width - _columns(label))}  {each.score:>9.4f}"
        if each.probability is None:
            share = (each.score - worst) / (best - worst) if best > worst else 1.0
            lines.append(f"{line}  {full * (1 + round(share * (BAR - 1)))}")
        else:
            bar = full * round(each.probability * BAR)
            lines.append(f"{line}  {format_probability(each.probability):>8}  {bar}".rstrip())
    return "\n".join(lines)


def format_probability(probability: float) -> str:
    """Format a probability in whole percent; one that is neither 0 nor 1 is not shown as such."""
    percent = 100 * probability
    return "<1 %" if 0 < percent < 0.5 else ">99 %" if 99.5 <= percent < 100 else f"{percent:.0f} %"


def _printable(text: str) -> str:
    """Replace characters that would control the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _columns(text: str) -> int:
    """Return how many terminal columns a text takes."""
    return sum(
        0 if unicodedata.combining(character) else 1 + (unicodedata.east_asian_width(character) in "FW")
        for character in text
    )
