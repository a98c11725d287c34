"""Read what the report shows of a run from its folder; missing files are left out."""

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
from lr2ppo.runs.lookup import METRICS, RESULTS, find_run, read_finished, read_inputs, read_rows, read_run, source_runs
from lr2ppo.runs.stages import STAGES

# Set by the run itself, or always different.
RUN_KEYS = (
    *("name", "preset"),
    *{key for stage in STAGES.values() for key in stage.sources},
    *("model.frames", "model.tokens_per_frame", "model.text_width", "model.image_width"),
)

Curve = tuple[list[float], list[float]]


@dataclass(frozen=True)
class SplitResults:
    """A run on one split: its results, and each clip's case, scores and metrics, in the same order."""

    results: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]]
    clips: Sequence[Clip]
    scores: Sequence[Scores]
    metrics: ClipMetrics


@dataclass(frozen=True)
class ReportedRun:
    """A run: `config` by dotted keys, `curves` by name, `inputs` the fingerprints of what it read.

    `finished` and `evaluation` are None if it is not yet.
    """

    folder: Path
    stage: str
    config: Mapping[str, Any]
    curves: Mapping[str, Curve]
    finished: Mapping[str, Any] | None
    inputs: Mapping[str, Any]
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
    """Return the folders of runs in stage order; for a single run, add those it started from."""
    folders = [find_run(reference, STAGES, logs) for reference in references]
    if len(folders) == 1:
        # Without those that no longer exist.
        folders += [source for source in source_runs(folders[0]).values() if source is not None]
    unique = {folder.resolve(): folder for folder in folders}
    return sorted(unique.values(), key=lambda folder: list(STAGES).index(read_run(folder)["stage"]))


def gather_run(folder: Path, split: str) -> ReportedRun:
    """Read all of a run; raises `UserError` if one of its files is damaged."""
    config = read_run(folder)
    try:
        curves = read_curves(folder)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: its {METRICS} is damaged: {error!r}; train the run again with --fresh") from None
    return ReportedRun(
        folder=folder,
        stage=config["stage"],
        config=dict(config_leaves(config)),
        curves=curves,
        finished=read_finished(folder),
        inputs=read_inputs(folder),
        evaluation=_read_evaluation(folder, split),
    )


def read_curves(folder: Path) -> dict[str, Curve]:
    """Read each scalar's steps and values from a run's evaluations; raises ValueError if a row is damaged."""
    curves: dict[str, Curve] = {}
    for row in read_rows(folder):
        for name, value in row.items():
            if "/" in name:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def preset_differences(run: ReportedRun) -> dict[str, Any]:
    """Return the preset's value of each key that the run changed; empty if the preset is not known."""
    try:
        preset = load_config(Path("configs") / run.preset / f"{run.stage}.yaml", run.stage)
    except UserError:
        return {}
    wanted = dict(config_leaves(preset.model_dump(mode="json")))
    return {
        key: wanted.get(key)
        for key, value in run.config.items()
        if key not in RUN_KEYS and wanted.get(key) != value
    }  # fmt: skip


def _read_evaluation(folder: Path, split: str) -> SplitResults | None:
    results, cases = (read_by_split(folder / name).get(split) for name in (RESULTS, CASES))
    if results is None or cases is None:
        return None
    clips, scores = cases_clips(cases)
    return SplitResults(results, cases, clips, scores, ranking_metrics(clips, scores))
