"""The report's clips: data that the page needs to show how the order of labels changed, frames included."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lr2ppo.data.annotations import Clip, graded
from lr2ppo.evaluation.pictures import grade_colour, read_thumbnails
from lr2ppo.report.load import ReportedRun, SplitResults

GROUP = 4
# Of the published scale; other scales have only their ends named.
MEANINGS = {0: "not relevant", 1: "somewhat", 2: "relevant"}
# Above these the page opens slowly: clips outside the groups first lose their frames, then are left out.
MOST_THUMBNAIL_BYTES = 4 * 2**20
MOST_CLIPS = 1000


def page_clips(before: SplitResults | None, after: SplitResults, root: Path, seed: int) -> dict[str, Any]:
    """Return the page's clips and the groups shown first; without `before`, compare with the order by grade.

    `groups` hold positions in `clips`: most gained (or best), most lost (or worst), and some at random.
    """
    quality = after.metrics["ndcg"]
    gains = quality if before is None else quality - before.metrics["ndcg"]
    groups = choose_groups(gains, seed, compared=before is not None)
    shown_first = [number for group in groups for number in group["clips"]]
    chosen = list(dict.fromkeys([*shown_first, *range(len(after.clips))]))[:MOST_CLIPS]
    place = {number: at for at, number in enumerate(chosen)}
    budget = MOST_THUMBNAIL_BYTES
    clips = []
    for number in chosen:
        frames = thumbnails(after.clips[number], root) if budget > 0 else []
        budget -= sum(map(len, frames))
        clips.append(_describe(number, before, after, frames))
    return {
        "clips": clips,
        "groups": [group | {"clips": [place[number] for number in group["clips"]]} for group in groups],
        "left_out": len(after.clips) - len(clips),
        "compared": before is not None,
    }


def choose_groups(gains: NDArray[np.float64], seed: int, compared: bool) -> list[dict[str, Any]]:
    """Choose the clips shown first: those with the largest and smallest gain, and a few others at random."""
    order = np.argsort(-gains, kind="stable").tolist()
    most = [number for number in order[:GROUP] if not compared or gains[number] > 0]
    least = [number for number in order[::-1][:GROUP] if (not compared or gains[number] < 0) and number not in most]
    others = [number for number in order if number not in {*most, *least}]
    drawn = sorted(np.random.default_rng(seed).permutation(others)[:GROUP].tolist())
    titles = ("Gained most", "Lost most") if compared else ("Best ordered", "Worst ordered")
    groups = zip((*titles, "A random few"), (most, least, drawn), strict=True)
    return [{"title": title, "clips": clips} for title, clips in groups]


def thumbnails(clip: Clip, root: Path) -> list[str]:
    """Return some of a clip's frames as small JPEG data URIs; skip those that cannot be read."""
    found = []
    for pixels in read_thumbnails(clip, root):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=82)
        found.append(f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}")
    return found


def describe_grades(clips: Sequence[Clip]) -> list[dict[str, Any]]:
    """Return the grades of the clips' labels, lowest first: each with its colour and, if it has one, its meaning."""
    grades = np.unique(np.concatenate([graded(clip) for clip in clips])).tolist()
    meanings = MEANINGS if grades[-1] <= max(MEANINGS) else {0: MEANINGS[0], grades[-1]: "most relevant"}
    return [{"grade": grade, "colour": grade_colour(grade), "meaning": meanings.get(grade)} for grade in grades]


def frames_root(run: ReportedRun) -> Path:
    """Return the folder that a run's image paths are relative to by default."""
    if run.evaluation is None:
        return Path()
    # An evaluation may use another data root than training.
    path = Path(run.evaluation.results["annotations"])
    for name in (run.config.get("data.test"), run.config.get("data.validation")):
        file = Path(name) if isinstance(name, str) else Path()
        if file.parts and not file.is_absolute() and path.parts[-len(file.parts) :] == file.parts:
            return Path(*path.parts[: -len(file.parts)])
    return path.parent


def _describe(number: int, before: SplitResults | None, after: SplitResults, frames: Sequence[str]) -> dict[str, Any]:
    case = after.cases[number]
    grades = case["grades"]
    ideal = np.argsort(-np.array(grades), kind="stable").tolist()
    return {
        "id": case["id"],
        "description": case.get("description", ""),
        "labels": case["labels"],
        "grades": grades,
        "before": ideal if before is None else before.cases[number]["order"],
        "after": case["order"],
        "ndcg_before": None if before is None else round(float(before.metrics["ndcg"][number]), 3),
        "ndcg_after": round(float(after.metrics["ndcg"][number]), 3),
        "frames": list(frames),
    }
