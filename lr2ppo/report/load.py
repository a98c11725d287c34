"""What the report tells of a run, read from its folder; what is not there yet is left out."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lr2ppo.config.load import config_leaves, load_config
from lr2ppo.data.annotations import Clip
from lr2ppo.errors import UserError
from lr2ppo.evaluation.comparison import ClipMetrics
from lr2ppo.evaluation.results import CASES, cases_clips, read_by_split, run_name
from lr2ppo.evaluation.scoring import Scores, ranking_metrics
from lr2ppo.runs.lookup import COMMANDS, FINISHED, METRICS, RESULTS, find_run, is_converted, read_rows, read_run

STAGES = tuple(COMMANDS)
EARLIER = {"ranker": "pointwise", "reward": "reward"}
# Filled in by a run itself, or never alike.
OWN_KEYS = (
    *("name", "preset", "ranker", "reward"),
    *("model.frames", "model.tokens_per_frame", "model.text_width", "model.image_width"),
)

Curve = tuple[list[float], list[float]]


@dataclass(frozen=True)
class SplitResults:
    """A run on one split: its results, and each clip's case, scores and metrics, clips in the same order."""

    results: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]]
    clips: Sequence[Clip]
    scores: Sequence[Scores]
    metrics: ClipMetrics


@dataclass(frozen=True)
class ReportedRun:
    """A run: `config` by dotted keys, `curves` by name; None for what it has not come to."""

    folder: Path
    stage: str
    config: Mapping[str, Any]
    curves: Mapping[str, Curve]
    finished: Mapping[str, Any] | None
    evaluation: SplitResults | None

    @property
    def name(self) -> str:
        return run_name(self.folder)

    @property
    def preset(self) -> str:
        return str(self.config.get("preset", ""))

    @property
    def best_step(self) -> int | None:
        return None if self.finished is None else int(self.finished["best_step"])


def find_runs(references: Sequence[str], logs: Path) -> list[Path]:
    """The folders of some runs in the order of the stages; with one run alone come those that it began from."""
    folders = [find_run(reference, STAGES, logs) for reference in references]
    if len(folders) == 1:
        folders += _earlier_runs(folders[0], logs)
    unique = {folder.resolve(): folder for folder in folders}
    return sorted(unique.values(), key=lambda folder: STAGES.index(_stage(folder)))


def gather_run(folder: Path, split: str) -> ReportedRun:
    """All of a run; raises `UserError` where a file of it is damaged."""
    finished = folder / FINISHED
    try:
        told = json.loads(finished.read_text(encoding="utf-8")) if finished.is_file() else None
        curves = read_curves(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: its {FINISHED} or {METRICS} is damaged: {error}") from None
    return ReportedRun(
        folder=folder,
        stage=_stage(folder),
        config={} if is_converted(folder) else dict(config_leaves(read_run(folder))),
        curves=curves,
        finished=told,
        evaluation=_read_evaluation(folder, split),
    )


def read_curves(folder: Path) -> dict[str, Curve]:
    """Each scalar's steps and values, from a run's evaluations; raises ValueError where a row is damaged."""
    curves: dict[str, Curve] = {}
    for row in read_rows(folder):
        for name, value in row.items():
            if "/" in name:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def preset_differences(run: ReportedRun) -> dict[str, Any]:
    """What the preset has where a run's config has another value, by key; empty where the preset is not known."""
    try:
        preset = load_config(Path("configs") / run.preset / f"{run.stage}.yaml", run.stage)
    except UserError:
        return {}
    wanted = dict(config_leaves(preset.model_dump(mode="json")))
    return {
        key: wanted.get(key)
        for key, value in run.config.items()
        if key not in OWN_KEYS and wanted.get(key) != value
    }  # fmt: skip


def _stage(folder: Path) -> str:
    return folder.parent.name if is_converted(folder) else str(read_run(folder)["stage"])


def _earlier_runs(folder: Path, logs: Path) -> list[Path]:
    config = {} if is_converted(folder) else read_run(folder)
    found = []
    for key, stage in EARLIER.items():
        reference = config.get(key)
        if isinstance(reference, str) and reference not in ("newest", "none"):
            try:
                found.append(find_run(reference, (stage,), logs))
            except UserError:
                # Moved or removed since: the report does without.
                continue
    return found


def _read_evaluation(folder: Path, split: str) -> SplitResults | None:
    results, cases = (read_by_split(folder / name).get(split) for name in (RESULTS, CASES))
    if results is None or cases is None:
        return None
    clips, scores = cases_clips(cases)
    return SplitResults(results, cases, clips, scores, ranking_metrics(clips, scores))
