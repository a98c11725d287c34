"""Rank the labels of a whole annotation file into JSON lines; a stopped run resumes after the last complete line."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lr2ppo.data.annotations import Clip, read_clips
from lr2ppo.data.frames import require_frames
from lr2ppo.errors import UserError
from lr2ppo.files import write_json
from lr2ppo.inference.ranker import LabelRanker, Query


def rank_file(ranker: LabelRanker, annotations: Path, frames_root: Path, out: Path) -> tuple[int, int]:
    """Write a line `{"id", "labels" best first, "scores"}` for each clip that is not in `out` yet.

    Returns how many were written and how many existed. The model's identity is kept beside `out`, in `OUT.run.json`.
    Raises `UserError`, before any work, if a clip or a frame cannot be used, or another model wrote `out`.
    """
    clips = read_clips(annotations, need="labels")
    identity_file = out.with_name(f"{out.name}.run.json")
    known = _resume(out, identity_file, clips, ranker.identity())
    missing = [clip for clip in clips if clip.id not in known]
    require_frames(missing, frames_root)
    write_json(identity_file, ranker.identity())
    with out.open("ab") as file:
        for clip in tqdm(missing, desc="ranking", unit="clip", initial=len(known), total=len(clips), disable=None):
            line = json.dumps(_rank_clip(ranker, clip, frames_root), ensure_ascii=False)
            file.write(line.encode() + b"\n")
            file.flush()
    return len(missing), len(known)


def _rank_clip(ranker: LabelRanker, clip: Clip, frames_root: Path) -> dict[str, Any]:
    frames = [frames_root / image for image in clip.images] or None
    (scores,) = ranker.score_batch([Query(frames, clip.labels, clip.description)])
    order = np.argsort(-scores, kind="stable").tolist()
    return {"id": clip.id, "labels": [clip.labels[place] for place in order], "scores": scores[order].tolist()}


def _resume(out: Path, identity_file: Path, clips: Sequence[Clip], identity: dict[str, Any]) -> set[str]:
    """Return the ids of the clips in `out`, after removing an incomplete last line."""
    content = out.read_bytes() if out.exists() else b""
    if not content:
        return set()
    try:
        recorded = json.loads(identity_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{out}: exists without {identity_file}, which names its model; give another --out") from None
    if recorded != identity:
        recorded = recorded if isinstance(recorded, dict) else {}
        differing = [
            f"{name} {recorded.get(name)}, now {value}"
            for name, value in identity.items()
            if recorded.get(name) != value
        ]
        raise UserError(f"{out}: was started with another model: {'; '.join(differing)}; give another --out")
    labels = {clip.id: sorted(clip.labels) for clip in clips}
    complete = content[: content.rfind(b"\n") + 1]
    known = set()
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            row = json.loads(line)
            clip_id, found = row["id"], sorted(row["labels"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{out}: line {number} is not from lr2ppo rank ({error}); remove it, or the file") from None
        if labels.get(clip_id, found) != found:
            raise UserError(f"{out}: line {number}: clip {clip_id} has other labels now; give another --out")
        known.add(clip_id)
    if len(complete) < len(content):
        os.truncate(out, len(complete))
    return known & labels.keys()
