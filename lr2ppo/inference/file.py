"""Rank the labels of a whole annotation file into JSON lines; what was stopped goes on behind its last whole line."""

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
    """Write a line `{"id", "labels" best first, "scores"}` for each clip that `out` does not hold yet.

    Returns how many were written and how many were there. What made them is kept beside `out`, in `OUT.run.json`.
    Raises `UserError`, before any work, where a clip or a frame cannot be used, or `out` is another model's.
    """
    clips = read_clips(annotations, need="labels")
    made_by = out.with_name(f"{out.name}.run.json")
    known = _go_on(out, made_by, clips, ranker.identity())
    missing = [clip for clip in clips if clip.id not in known]
    require_frames(missing, frames_root)
    write_json(made_by, ranker.identity())
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


def _go_on(out: Path, made_by: Path, clips: Sequence[Clip], identity: dict[str, Any]) -> set[str]:
    """The ids of the clips that `out` holds, once a line cut short is dropped from its end."""
    content = out.read_bytes() if out.exists() else b""
    if not content:
        return set()
    try:
        began = json.loads(made_by.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{out}: is there, but not {made_by}, which tells what wrote it; give another --out") from None
    if began != identity:
        began = began if isinstance(began, dict) else {}
        differing = [
            f"{name} {began.get(name)}, now {value}" for name, value in identity.items() if began.get(name) != value
        ]
        raise UserError(f"{out}: was begun with another model: {'; '.join(differing)}; give another --out")
    labels = {clip.id: sorted(clip.labels) for clip in clips}
    whole = content[: content.rfind(b"\n") + 1]
    known = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            row = json.loads(line)
            clip_id, found = row["id"], sorted(row["labels"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{out}: line {number} is none of ours ({error}); remove it, or the file") from None
        if labels.get(clip_id, found) != found:
            raise UserError(f"{out}: line {number}: clip {clip_id} has other labels now; give another --out")
        known.add(clip_id)
    if len(whole) < len(content):
        os.truncate(out, len(whole))
    return known & labels.keys()
