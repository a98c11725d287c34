"""Rank the labels of a whole annotation file into JSON lines; a stopped run resumes after the last complete line."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lr2ppo.data.annotations import Clip, read_clips
from lr2ppo.data.features.encoders import COMPARED
from lr2ppo.data.frames import frames_fingerprint, require_frames
from lr2ppo.errors import UserError, path_errors_as_user_errors, show
from lr2ppo.files import check_inside, check_output, parse_json, read_json, write_json
from lr2ppo.inference.ranker import LabelRanker, Query

Facts = Mapping[str, Any]
# Files of earlier versions lack the other parts of a model's identity.
ALWAYS_RECORDED = ("run", "weights", *COMPARED)


@path_errors_as_user_errors()
def rank_file(ranker: LabelRanker, annotations: Path, frames_root: Path, out: Path) -> tuple[int, int]:
    """Write a line `{"id", "labels" best first, "scores", "probabilities", "inputs"}` for each clip not in `out` yet.

    `probabilities` are those of `RankedLabel`, null where the run has no calibration; `inputs` is a fingerprint of the
    clip: its labels, description and frames. Returns how many were written and how many existed. The model's identity
    is kept beside `out`, in `OUT.run.json`. Raises `UserError`, before any work, if a clip or a frame cannot be used,
    if another model or other inputs made a line of `out`, or if another process writes `out`.
    """
    # Beside the file itself, not a link that may lead to another later.
    out = check_output(out)
    identity, identity_file = ranker.identity(), out.with_name(f"{out.name}.run.json")
    check_inside(identity_file)
    clips = read_clips(annotations, need="labels")
    with _locked(out) as file:
        lines, complete = _read_lines(file, out)
        if lines:
            _check_identity(out, identity_file, identity)
        known = _check_lines(lines, out, clips, frames_root)
        missing = [clip for clip in clips if clip.id not in known]
        require_frames(missing, frames_root)
        write_json(identity_file, identity)
        file.truncate(complete)
        for clip in tqdm(missing, desc="ranking", unit="clip", initial=len(known), total=len(clips), disable=None):
            line = json.dumps(_rank_clip(ranker, clip, frames_root), ensure_ascii=False)
            file.write(line.encode() + b"\n")
            file.flush()
    return len(missing), len(known)


def _rank_clip(ranker: LabelRanker, clip: Clip, frames_root: Path) -> dict[str, Any]:
    frames = [frames_root / image for image in clip.images] or None
    inputs = _fingerprint(clip, frames_root)
    (scores,) = ranker.score_batch([Query(frames, clip.labels, clip.description, clip.id)])
    if _fingerprint(clip, frames_root) != inputs:
        raise UserError(f"clip {clip.id}: its frames changed while they were read; run the same command again")
    order = np.argsort(-scores, kind="stable").tolist()
    labels = [clip.labels[place] for place in order]
    probabilities = ranker.probabilities(scores[order])
    return {
        "id": clip.id,
        "labels": labels,
        "scores": scores[order].tolist(),
        "probabilities": None if probabilities is None else probabilities.tolist(),
        "inputs": inputs,
    }


def _fingerprint(clip: Clip, frames_root: Path) -> str:
    """A fingerprint of all that a clip's scores depend on, besides the model."""
    return f"{clip.text_fingerprint()}-{frames_fingerprint(clip, frames_root)}"


@contextmanager
def _locked(out: Path) -> Iterator[BufferedRandom]:
    """Open `out` to read and append for this process alone; remove it if nothing was written."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is writing it; wait for it, or give another --out") from None
        except OSError as error:
            raise UserError(f"{out}: cannot be locked: {error.strerror}; give an --out on another disk") from None
        try:
            yield file
        finally:
            file.flush()
            if os.fstat(file.fileno()).st_size == 0:
                out.unlink(missing_ok=True)


def _read_lines(file: BufferedRandom, out: Path) -> tuple[list[Facts], int]:
    """The lines of `out` and their size in bytes, without an incomplete last one."""
    file.seek(0)
    content = file.read()
    complete = content[: content.rfind(b"\n") + 1]
    lines: list[Facts] = []
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            row = parse_json(line)
            lines.append({"id": row["id"], "labels": sorted(row["labels"]), "inputs": row.get("inputs")})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{out}: line {number} is not from lr2ppo rank ({error}); remove it, or the file") from None
    return lines, len(complete)


def _check_identity(out: Path, identity_file: Path, identity: Facts) -> None:
    """Raise `UserError` if another model wrote `out`."""
    try:
        recorded = read_json(identity_file)
    except (OSError, ValueError, RecursionError):
        raise UserError(f"{out}: exists without {identity_file}, which names its model; give another --out") from None
    recorded = recorded if isinstance(recorded, dict) else {}
    differing = [
        f"{name} {recorded.get(name)}, now {value}"
        for name, value in identity.items()
        if (name in recorded or name in ALWAYS_RECORDED) and recorded.get(name) != value
    ]
    if differing:
        raise UserError(f"{out}: was started with another model: {'; '.join(differing)}; give another --out")


def _check_lines(lines: Sequence[Facts], out: Path, clips: Sequence[Clip], frames_root: Path) -> set[str]:
    """Return the ids of the clips in `out`; raise `UserError` if one has other labels, description or frames now."""
    by_id = {clip.id: clip for clip in clips}
    known = set()
    rows = tqdm(lines, desc="checking what was ranked", unit="clip", leave=False, disable=None)
    for number, row in enumerate(rows, start=1):
        clip = by_id.get(row["id"])
        if row["id"] in known:
            raise UserError(f"{out}: line {number}: a second line of clip {show(row['id'])}; give another --out")
        if clip is None:
            raise UserError(
                f"{out}: line {number}: clip {show(row['id'])} is not in the annotation file; give another --out, or "
                "remove this line"
            )
        if sorted(clip.labels) != row["labels"]:
            raise UserError(f"{out}: line {number}: clip {clip.id} has other labels now; give another --out")
        # Lines of earlier versions have no fingerprint.
        if row["inputs"] is not None and row["inputs"] != _fingerprint(clip, frames_root):
            raise UserError(
                f"{out}: line {number}: clip {clip.id} has another description or other frames now; give another --out"
            )
        known.add(clip.id)
    return known
