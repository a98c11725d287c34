"""Convert a table of clips into a data folder in LRMovieNet's layout."""

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lr2ppo.data import annotations
from lr2ppo.data.annotations import Clip, write_clips
from lr2ppo.data.convert.frame_files import find_sources, place_frames
from lr2ppo.data.convert.splits import Pairs, Splits, draw_pairs, draw_splits
from lr2ppo.data.convert.table import (
    COLUMNS,
    PREFERENCES,
    WHOLE_LIST,
    TableClip,
    add_preferences,
    domain_faults,
    gather_clips,
    read_records,
    require_columns,
)
from lr2ppo.errors import UserError, path_errors_as_user_errors, raise_faults
from lr2ppo.files import atomic_folder

PAIR_SHARE = 0.1


def read_table(
    path: Path, preferences: Path | None, names: Mapping[str, str]
) -> tuple[list[TableClip], list[str], list[str]]:
    """The clips of a table with their preferences, all faults of both files, and the table's columns that are not read.

    Raises `UserError` if one of them is no table or lacks a column.
    """
    faults: list[str] = []
    records, found = read_records(path, COLUMNS, names, faults)
    if records:
        require_columns(path, found, names, ["clip"], ["label"], ["frames", "video"])
    clips = gather_clips(records, faults)
    read = {names.get(column, column).casefold() for column in COLUMNS} | {WHOLE_LIST}
    unread = [column for column in found if column and column not in read]
    if names.get("domain", "domain").casefold() in found:
        faults += domain_faults(clips.values())
        domains = {clip.is_source for clip in clips.values()}
        if len(domains) == 1 and not faults:
            raise UserError(
                f"{path}: every clip is in the {'source' if domains.pop() else 'target'} domain; with one domain only, "
                "leave out the column domain"
            )
    if preferences is not None:
        preference_faults: list[str] = []
        records, found = read_records(preferences, PREFERENCES, {}, preference_faults)
        if records:
            require_columns(preferences, found, {}, *([column] for column in PREFERENCES))
        add_preferences(records, clips, preference_faults)
        faults += [f"{preferences.name} {fault}" for fault in preference_faults]
    return list(clips.values()), faults, unread


def make_clip(clip: TableClip, images: tuple[str, ...], graded: bool = True, pairs: Pairs | None = None) -> Clip:
    """Convert a table's clip into one for the annotation files."""
    video = Path(clip.about.get("video", "")).name
    return Clip(
        id=clip.id,
        labels=tuple(clip.labels),
        grades=np.array(clip.grades) if graded and clip.is_graded else None,
        description=clip.about.get("description", ""),
        filename=video,
        images=images,
        pairs=np.empty((0, 2), dtype=np.int64) if pairs is None else pairs,
    )


def make_files(
    splits: Splits, pairs: Sequence[Pairs], images: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, list[Clip]]]:
    """Each annotation file's purpose and clips, by file name."""

    def graded(clips: Iterable[TableClip]) -> list[Clip]:
        return [make_clip(clip, images[clip.id]) for clip in clips]

    annotated = [
        make_clip(clip, images[clip.id], pairs=own) for clip, own in zip(splits.train, pairs, strict=True) if len(own)
    ]
    ungraded = [make_clip(clip, images[clip.id], graded=False) for clip in splits.train]
    return {
        annotations.SOURCE_TRAIN: ("stage 1, graded", graded(splits.source)),
        annotations.TARGET_PAIRS: ("stage 2, pairs", annotated),
        annotations.TARGET_TRAIN: ("stage 3, no grades", ungraded),
        annotations.VALIDATION: ("model selection", graded(splits.validation)),
        annotations.TEST: ("evaluation", graded(splits.test)),
    }


def describe(files: Mapping[str, tuple[str, Sequence[Clip]]], splits: Splits) -> str:
    """The summary: the contents of each file, and what of the table is in none of them."""
    lines = [f"{'file':57s}{'for':20s}{'clips':>8s}{'labels':>9s}{'pairs':>9s}"]
    for name, (purpose, clips) in files.items():
        labels, pairs = sum(len(clip.labels) for clip in clips), sum(len(clip.pairs) for clip in clips)
        lines.append(f"{name:57s}{purpose:20s}{len(clips):8,d}{labels:9,d}{f'{pairs:,}' if pairs else '':>9s}".rstrip())
    if splits.left_out:
        lines.append(
            f"left out: {len(splits.left_out)} clips, such as {splits.left_out[0].id}, in groups held out for "
            "validation or test, but ungraded or in the source domain"
        )
    unused = sum(len(clip.preferences) for clip in [*splits.validation, *splits.test, *splits.left_out])
    if unused:
        lines.append(f"not used: {unused} preferences on clips held out for validation or test")
    return "\n".join(lines)


def read_names(text: str) -> dict[str, str]:
    """Parse column names such as `clip=video_id,label=tag`; raises `UserError` if the text has another form."""
    names = {}
    for part in filter(None, text.split(",")):
        column, equals, name = (piece.strip() for piece in part.partition("="))
        if column not in COLUMNS or not equals or not name:
            raise UserError(f"--columns: found {part!r}, wanted COLUMN=NAME, COLUMN one of {', '.join(COLUMNS)}")
        names[column] = name
    return names


def write_folder(
    table: Path,
    out: Path,
    *,
    preferences: Path | None,
    names: Mapping[str, str],
    frames_root: Path | None,
    frames_per_video: int,
    validation_share: float,
    test_share: float,
    pair_share: float | None,
    seed: int,
) -> str:
    """Convert a table into the data folder `out`, completely or not at all; returns a summary of the folder.

    Paths in the table are relative to `frames_root` or, without it, to the table's folder. `pair_share` defaults to a
    tenth, or to none if there are preferences. Raises `UserError` naming all faults of the table and its frames, or if
    `out` is no new folder.
    """
    _require_new(out)
    if frames_root is not None and not os.path.isdir(frames_root):
        raise UserError(
            f"--frames-root: found no folder {frames_root}; give the folder that the table's paths start at"
        )
    clips, faults, unread = read_table(table, preferences, names)
    sources = find_sources(clips, frames_root or table.parent, faults)
    raise_faults(table, faults, "fix the table and run again; nothing was written")
    rng = np.random.default_rng(seed)
    if pair_share is None:
        pair_share = PAIR_SHARE if preferences is None else 0
    try:
        splits = draw_splits(clips, validation_share, test_share, rng)
        pairs = draw_pairs(splits.train, pair_share, rng)
    except UserError as error:
        raise UserError(f"{table}: {error}") from None

    if any(source.video for source in sources.values()) and importlib.util.find_spec("av") is None:
        raise UserError("reading videos needs PyAV, which is not installed: pip install '.[video]'")
    with atomic_folder(out) as folder:
        images = {}
        for clip in tqdm(clips, desc="placing frames", unit="clip", disable=None):
            try:
                images[clip.id] = place_frames(clip, sources[clip.id], folder, frames_per_video)
            except UserError as fault:
                faults.append(f"row {clip.row}: clip {clip.id}: {fault}")
        raise_faults(table, faults, "fix these and run again; nothing was written")
        files = make_files(splits, pairs, images)
        for name, (_, file_clips) in files.items():
            write_clips(folder / name, file_clips)
    note = f"\nnote: columns of the table that are not read: {', '.join(unread)}" if unread else ""
    return describe(files, splits) + note


@path_errors_as_user_errors()
def _require_new(out: Path) -> None:
    """Raise `UserError` unless `out` is an empty folder, or none yet that can be one."""
    target = Path(os.path.realpath(out))
    try:
        target.lstat()
    except FileNotFoundError:
        return
    if not target.is_dir():
        raise UserError(f"{out}: exists and is no folder; give a new folder")
    if any(target.iterdir()):
        raise UserError(
            f"{out}: exists and is not empty; give a new folder, or remove this one, "
            "since its features would be used for the new clips"
        )
