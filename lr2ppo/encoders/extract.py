"""Extract features of a folder in LRMovieNet's layout into a feature store; a stopped extraction resumes.

Several processes write one file each: `clean_feat-00-of-04.h5` and so on, instead of `clean_feat.h5`.
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lr2ppo.data.annotations import Clip, read_clips
from lr2ppo.data.features.layout import Sources
from lr2ppo.data.features.store import find_shards, shards_setting
from lr2ppo.data.features.writer import (
    FeatureWriter,
    Metadata,
    StoredType,
    read_clip_names,
    read_clip_sources,
    remove_clips,
)
from lr2ppo.data.frames import frames_fingerprint, read_image, require_frames
from lr2ppo.data.validate import GIVE_OTHER_IDS, NEEDS, disagreements, unique_clips
from lr2ppo.distributed.processes import Processes, choose_device, join_processes, local_rank
from lr2ppo.encoders.extractor import describe_encoding
from lr2ppo.encoders.image import FrameTokens, ImageEncoder
from lr2ppo.encoders.text import TextEncoder
from lr2ppo.errors import FAULTS_SHOWN, UserError, path_errors_as_user_errors, raise_faults
from lr2ppo.files import check_inside, check_one_name
from lr2ppo.terminal import say

SECONDS_TO_REPORT = 60


def find_clips(data: Path) -> list[Clip]:
    """All clips of the folder's annotation files, each id once; raises `UserError` if two files disagree."""
    # What is there but no regular file is refused, not left out.
    found = [name for name in NEEDS if os.path.lexists(data / name)]
    if not found:
        raise UserError(f"{data}: found none of the annotation files {', '.join(NEEDS)}")
    files = {name: read_clips(data / name, need="labels") for name in found}
    raise_faults(data, [str(fault) for fault in disagreements(files)], GIVE_OTHER_IDS)
    return unique_clips(files)


def shard_path(out: Path, rank: int, processes: int) -> Path:
    """The file that a process writes: `out` itself if there is one process, else a shard of it."""
    return out if processes == 1 else out.with_name(f"{out.stem}-{rank:02d}-of-{processes:02d}{out.suffix}")


def feature_files(out: Path) -> list[Path]:
    """A feature file and its shards, those that exist."""
    return [path for path in (out, *find_shards(out)) if os.path.lexists(path)]


def find_changed(
    clips: Iterable[Clip], frames_root: Path, out: Path, metadata: Metadata, dtype: StoredType
) -> dict[Path, list[str]]:
    """The clips whose labels, description or frames have changed since they were extracted, by feature file.

    Files of earlier versions do not say what their features were made from: their clips count as unchanged. Raises
    `UserError` as `find_share`.
    """
    sources = {path: read_clip_sources(path, metadata, dtype) for path in feature_files(out)}
    held = {clip for found in sources.values() for clip, source in found.items() if source is not None}
    again = [clip for clip in clips if clip.id in held]
    progress = tqdm(again, desc="checking what was extracted", unit="clip", leave=False, disable=None)
    now = {clip.id: describe_sources(clip, frames_root) for clip in progress}
    return {
        path: [clip for clip, source in found.items() if clip in now and source and not source.agree(now[clip])]
        for path, found in sources.items()
    }


@path_errors_as_user_errors()
def describe_sources(clip: Clip, frames_root: Path) -> Sources:
    """Describe what a clip's features are made from."""
    return Sources(clip.text_fingerprint(), frames_fingerprint(clip, frames_root), clip.images_fingerprint())


@dataclass(frozen=True)
class Share:
    """One process's work: it extracts `clips` into `path`; `missing` counts those of all processes."""

    path: Path
    clips: Sequence[Clip]
    missing: int


def find_share(
    clips: Sequence[Clip], out: Path, metadata: Metadata, dtype: StoredType, rank: int = 0, processes: int = 1
) -> Share:
    """Every `processes`-th clip of those that are neither in `out` nor in any of its shards.

    Raises `UserError` if one of these files cannot be read or holds features with other metadata.
    """
    held = {clip for path in feature_files(out) for clip in read_clip_names(path, metadata, dtype)}
    missing = [clip for clip in clips if clip.id not in held]
    return Share(shard_path(out, rank, processes), missing[rank::processes], len(missing))


def extract(
    clips: Sequence[Clip],
    frames_root: Path,
    text: TextEncoder,
    image: ImageEncoder,
    out: FeatureWriter,
    show_progress: bool = True,
) -> None:
    """Encode the clips and write their features."""
    hidden = None if show_progress else True
    for clip in tqdm(clips, desc="extracting features", unit="clip", disable=hidden):
        sources = describe_sources(clip, frames_root)
        texts = [(label, clip.description) for label in clip.labels]
        tokens = [row.float().cpu().numpy() for row in text(texts)]
        frames = np.zeros((0, image.width), dtype=np.float32)
        if clip.images:
            # Made small one by one: all pictures of a clip may not fit into memory.
            pixels = [image.prepare(read_image(frames_root / name)) for name in clip.images]
            frames = image(pixels).float().flatten(0, 1).cpu().numpy()
        if describe_sources(clip, frames_root) != sources:
            raise UserError(f"clip {clip.id}: its frames changed while they were read; run the same command again")
        out.write(clip.id, tokens, frames, text.label_spans(texts), sources)


def remove_changed(changed: Sequence[Mapping[Path, Sequence[str]]], processes: Processes) -> None:
    """Remove the features of clips that have changed, found by each process, so that they are extracted again."""
    if not processes.is_main:
        return
    for found in changed:
        for path, clips in found.items():
            if clips:
                remove_clips(path, clips)
                one = len(clips) == 1
                what = "1 clip has changed since, and is" if one else f"{len(clips)} clips have changed since, and are"
                names = ", ".join(clips[:FAULTS_SHOWN]) + " and others" * (len(clips) > FAULTS_SHOWN)
                say(f"{path}: {what} extracted again: {names}")


@contextmanager
def report_once(processes: Processes) -> Iterator[None]:
    """Run the same work in every process; the first rank with a `UserError` raises it, and all others exit too."""
    fault = None
    try:
        yield
    except UserError as error:
        fault = error
    faulty = [rank for rank, has_fault in enumerate(processes.gather(fault is not None)) if has_fault]
    if fault is not None and processes.rank == faulty[0]:
        raise fault
    if faulty:
        # The launcher ends this process once the reporting one has ended.
        time.sleep(SECONDS_TO_REPORT)
        sys.exit(2)


def extract_folder(
    data: Path,
    frames_root: Path,
    given: Path | None,
    *,
    text: Path,
    tokenizer: Path | None,
    image: Path,
    frame_tokens: FrameTokens,
    dtype: StoredType,
    device: str,
) -> None:
    """Extract this process's share of a folder's clips with the encoders at these paths, and print a summary.

    The feature file is `given`, which may be a link, by default `clean_feat.h5` in the folder. Raises `UserError`,
    before any work, if the encoders, the clips, their frames or an existing feature file cannot be used.
    """
    out = given or data / "clean_feat.h5"
    # Processes communicate only before extraction, on the CPU, since two may share a GPU. No process writes before all
    # have read the existing files, so that their shares are of the same clips.
    with join_processes("cpu") as processes:
        with report_once(processes):
            for path in {shard_path(out, processes.rank, processes.world_size), *feature_files(out)} - {given}:
                check_inside(path)
            for path in feature_files(out):
                check_one_name(path, path.stat())
            text_encoder = TextEncoder.load(text, tokenizer)
            text_encoder.require_tokenizer()
            clips = find_clips(data)
            require_frames(clips, frames_root)
            chosen = choose_device(device, local_rank())
            text_encoder = text_encoder.to(chosen)
            image_encoder = ImageEncoder.load(image, frame_tokens).to(chosen)
            encoding = describe_encoding(text_encoder, text, image_encoder, image, dtype)
            metadata = encoding.facts() | {"tokens_per_frame": image_encoder.tokens_per_frame}
            mine = clips[processes.rank :: processes.world_size]
            changed = find_changed(mine, frames_root, out, metadata, dtype)
        with report_once(processes):
            remove_changed(processes.gather(changed), processes)
        with report_once(processes):
            share = find_share(clips, out, metadata, dtype, processes.rank, processes.world_size)
    if share.clips:
        with FeatureWriter(share.path, metadata, dtype, encoding.paths()) as writer:
            extract(share.clips, frames_root, text_encoder, image_encoder, writer, show_progress=processes.is_main)
    if processes.is_main:
        of_all = f", its share of {share.missing}" if processes.world_size > 1 else ""
        existing = len(clips) - share.missing
        say(f"{share.path}: wrote {len(share.clips)} clips{of_all}, {existing} were there already")
        if frameless := [clip.id for clip in clips if not clip.images]:
            say(f"note: {len(frameless)} clips name no frames, such as {frameless[0]}: they have only text features")
        if find_shards(out):
            say(f"train on all of them with {shards_setting(out)}")
