"""A small data folder in LRMovieNet's exact layout, and overrides that fit its preset to it."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lr2ppo.data import annotations

TOKENS, WIDTH, FRAMES = 6, 16, 4
MODEL = ("model.width=16", f"model.text_tokens={TOKENS}")
DATA = (f"data.frames={FRAMES}", "data.workers=0")
SIZES = {"source": 10, "target": 9, "validation": 5, "test": 6}


def write_lrmovienet(root: Path, seed: int = 0) -> Path:
    """Write annotations with string targets and missing optional keys, and fully padded features without `text_len`.

    Each domain has a clip of 3 and one of 37 labels, one of 1 and one of 40 frames.
    """
    rng = np.random.default_rng(seed)
    root.mkdir(parents=True, exist_ok=True)
    with h5py.File(root / "clean_feat.h5", "w") as store:
        source, target, validation, test = (
            [_clip(f"tt{domain}{i:03d}", i, store, rng) for i in range(size)]
            for domain, size in enumerate(SIZES.values())
        )
    annotated = [clip | {"index": _pairs(clip, rng)} for clip in target]
    files = {
        annotations.SOURCE_TRAIN: source,
        annotations.TARGET_PAIRS: annotated,
        annotations.TARGET_TRAIN: target,
        annotations.VALIDATION: validation,
        annotations.TEST: test,
    }
    for name, clips in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(clips), encoding="utf-8")
    return root


def _clip(clip_id: str, number: int, store: h5py.File, rng: np.random.Generator) -> dict[str, Any]:
    labels = {0: 3, 1: 37}.get(number, int(rng.integers(3, 38)))
    frames = {0: 1, 1: 40}.get(number, int(rng.integers(1, 41)))
    grades = np.resize(rng.permutation(3), labels)
    text = rng.normal(size=(labels, TOKENS, WIDTH)).astype(np.float32)
    text[:, :, 0] = grades[:, None]
    store[f"{clip_id}/text_emb"] = text
    store[f"{clip_id}/img_emb"] = rng.normal(size=(1, frames, WIDTH)).astype(np.float32)
    clip: dict[str, Any] = {
        "id": clip_id,
        "tags": [{"tag": f"label {label}", "target": str(grade)} for label, grade in enumerate(grades)],
        "duration": 12.5,
    }
    if number % 3:
        clip |= {
            "description": "what happens",
            "filename": f"{clip_id}.mp4",
            "image": [f"{clip_id}/shot_0000_img_0.jpg"],
        }
    return clip


def _pairs(clip: dict[str, Any], rng: np.random.Generator) -> list[list[int]]:
    grades = np.array([int(tag["target"]) for tag in clip["tags"]])
    pairs = rng.permutation(annotations.better_worse_pairs(grades))
    return [[int(better), int(worse)] for better, worse in pairs[:20]]
