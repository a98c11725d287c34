"""Which clips a run, and those that it started from, were trained on: kept in its folder, as files may change."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from lr2ppo.data.annotations import Clip, graded, read_valid_clips
from lr2ppo.files import file_fingerprint
from lr2ppo.runs.lookup import read_data, read_inputs, read_run, read_trained_on, source_runs
from lr2ppo.runs.records import TrainedOn


def join_trained_on(
    clips: Iterable[Clip], validation: Iterable[Clip], sources: Iterable[Path], root: Path
) -> TrainedOn:
    """Return the clips of a run that trains on `clips` and starts from the runs `sources`: see `find_trained_on`."""
    selected_on = [clip.id for clip in validation]
    own = TrainedOn(clips=[clip.id for clip in clips], unknown=[], selected_on=selected_on)
    return _join([own, *(find_trained_on(source, root) for source in sources)])


def find_trained_on(folder: Path, root: Path) -> TrainedOn:
    """Return the clips that a run, and those that it started from, were trained on, and the runs of unknown clips.

    Runs of earlier versions did not keep them: the run's annotations, if they are as they were then, are searched in
    its data folder and in `root`. Raises `UserError` if a file of a run is damaged.
    """
    kept = read_trained_on(folder)
    if kept is not None:
        return kept
    data, fingerprint = read_data(folder), read_inputs(folder).get("train")
    paths = [path for path in (data.root / data.train, root / data.train) if path.is_file()]
    same = next((path for path in paths if file_fingerprint(path) == fingerprint), None)
    own = _unknown(folder)
    if same is not None:
        own = TrainedOn(clips=[clip.id for clip in read_valid_clips(same)[0]], unknown=[])
    config = read_run(folder)
    sources = [
        _unknown(Path(config[key])) if source is None else find_trained_on(source, root)
        for key, source in source_runs(folder).items()
    ]
    return _join([own, *sources])


def _unknown(folder: Path) -> TrainedOn:
    return TrainedOn(clips=[], unknown=["/".join(folder.parts[-2:])])


def _join(parts: Sequence[TrainedOn]) -> TrainedOn:
    clips = {clip for part in parts for clip in part.clips}
    selected_on = {clip for part in parts for clip in part.selected_on}
    unknown = {run for part in parts for run in part.unknown}
    return TrainedOn(clips=sorted(clips), unknown=sorted(unknown), selected_on=sorted(selected_on))


def clips_fingerprint(clips: Iterable[Clip]) -> str:
    """A fingerprint of clips with their labels and grades, in order."""
    facts = [[clip.id, clip.labels, graded(clip).tolist()] for clip in clips]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
