"""Captioned pictures and texts of a data folder, from which tiny encoders are pretrained."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lr2ppo.data.annotations import CAPTIONS, SOURCE_TRAIN, TARGET_TRAIN, Clip, read_clips
from lr2ppo.data.frames import frames_fingerprint, missing_frames, unusable_frames
from lr2ppo.errors import UserError, raise_faults
from lr2ppo.files import file_fingerprint

TRAINING_FILES = (SOURCE_TRAIN, TARGET_TRAIN)
# In an encoder's folder: what it was trained on.
PRETRAINED_ON = "pretrained_on.json"


@dataclass(frozen=True)
class Captions:
    """Pictures with captions, other texts, and the words to recognise: `named [pictures, words]`."""

    pictures: Sequence[Path]
    captions: Sequence[str]
    texts: Sequence[str]
    words: Sequence[str]
    named: NDArray[np.bool_]


def read_captions(data: Path, limit: int, rng: np.random.Generator) -> Captions:
    """Read captioned pictures from `pretrain_data.json` or, without it, the training clips' frames and descriptions.

    Raises `UserError` if a file or a picture cannot be used, or if no caption names a label.
    """
    clips = _read_training_clips(data)
    if not clips:
        raise UserError(f"{data}: found none of {', '.join(TRAINING_FILES)}; pretraining needs their labels and texts")
    captioned: Sequence[Clip] = clips
    if (data / CAPTIONS).is_file():
        captioned = read_clips(data / CAPTIONS, need="images")
    words = sorted({label for clip in clips for label in clip.labels})
    shown = [(data / image, clip.description) for clip in captioned for image in clip.images if clip.description]
    shown = [shown[i] for i in rng.permutation(len(shown))[:limit]]
    captions = [caption for _, caption in shown]
    named = contains_words(captions, words)
    if not named.any():
        raise UserError(f"{data}: no description names any label; the tiny encoders need some that do")
    faults = [str(fault) for fault in unusable_frames(captioned, data)]
    faults += [f"no file {image}" for image in missing_frames(captioned, data)]
    raise_faults(data, faults, "fix or remove these frames")
    keep = np.flatnonzero(named.any(1))
    return Captions(
        pictures=[shown[i][0] for i in keep],
        captions=[captions[i] for i in keep],
        texts=sorted({clip.description for clip in clips if clip.description}),
        words=words,
        named=named[keep],
    )


def contains_words(texts: Sequence[str], words: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each text contains each word, as a whole word: `[texts, words]`."""
    patterns = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in words]
    return np.array([[pattern.search(text) is not None for pattern in patterns] for text in texts], dtype=bool)


def captions_fingerprint(data: Path) -> str:
    """A fingerprint of all that `read_captions` may read, pictures included.

    Raises `UserError` if an annotation file cannot be used, OSError if a picture cannot be read.
    """
    files = [name for name in (*TRAINING_FILES, CAPTIONS) if (data / name).is_file()]
    clips = read_clips(data / CAPTIONS, need="images") if CAPTIONS in files else _read_training_clips(data)
    facts = [[file_fingerprint(data / name) for name in files], [frames_fingerprint(clip, data) for clip in clips]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _read_training_clips(data: Path) -> list[Clip]:
    return [clip for name in TRAINING_FILES if (data / name).is_file() for clip in read_clips(data / name)]
