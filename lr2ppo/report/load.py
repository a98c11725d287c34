"""Read what the report shows of a run from its folder; missing files are left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lr2ppo.config.load import config_leaves, load_config
from lr2ppo.data.annotations import Clip
from lr2ppo.errors import UserError
from lr2ppo.evaluation.comparison import ClipMetrics, Row, Run, name_rows
from lr2ppo.evaluation.results import (
    CASES,
    cases_clips,
    evaluation_fault,
    measure_run,
    read_by_split,
    row_notes,
    run_name,
)
from lr2ppo.runs.lookup import (
    METRICS,
    RESULTS,
    find_groups,
    read_finished,
    read_inputs,
    read_rows,
    read_run,
    source_runs,
)
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
    """A run on one split: its results, each clip's case, and the clips and metrics to compare, in the same order."""

    results: Mapping[str, Any]
    cases: Sequence[Mapping[str, Any]]
    clips: Sequence[Clip]
    measured: Run

    @property
    def metrics(self) -> ClipMetrics:
        return self.measured.metrics


@dataclass(frozen=True, eq=False)
class ReportedRun:
    """A run: `config` by dotted keys, `curves` by name, `inputs` the fingerprints of what it read.

    `finished` is None if it is not yet; `evaluation` is None if it has none to show, and `fault` says why.
    """

    folder: Path
    stage: str
    config: Mapping[str, Any]
    curves: Mapping[str, Curve]
    finished: Mapping[str, Any] | None
    inputs: Mapping[str, Any]
    evaluation: SplitResults | None
    fault: str | None

    @property
    def name(self) -> str:
        return run_name(self.folder)

    @property
    def preset(self) -> str:
        return str(self.config.get("preset", ""))

    @property
    def best_step(self) -> int | None:
        return None if self.finished is None else int(self.finished["best_step"])


@dataclass(frozen=True, eq=False)
class ReportedRow:
    """Runs that the results show as one row, such as a run per seed; of `stage` is the first."""

    name: str
    runs: Sequence[ReportedRun]
    notes: Sequence[str]

    @property
    def stage(self) -> str:
        return self.runs[0].stage

    def measure(self) -> Row | None:
        """Return the row to compare; None if one of its runs is not evaluated."""
        evaluations = [run.evaluation for run in self.runs]
        measured = [evaluation.measured for evaluation in evaluations if evaluation is not None]
        return Row(self.name, measured) if len(measured) == len(self.runs) else None


def _started_from(row: Sequence[Path]) -> list[list[Path]]:
    """The rows of the runs that a row's runs started from, and of those that these started from, each once.

    Without those that no longer exist. Runs may share the run that they started from.
    """
    rows: dict[tuple[Path, ...], list[Path]] = {}
    sources = [source_runs(folder) for folder in row]
    for key in sources[0]:
        found = {folder.resolve(): folder for own in sources if (folder := own.get(key)) is not None}
        for own in [list(found.values()), *_started_from(list(found.values()))] if found else ():
            rows.setdefault(tuple(folder.resolve() for folder in own), own)
    return list(rows.values())


def find_rows(references: Sequence[str], logs: Path) -> list[list[Path]]:
    """Return the folders of the runs of each row, `RUN` or `RUN,RUN,...`, rows in stage order.

    For a single row, add those of all runs that its runs started from. Raises `UserError` if a run does not exist or
    is named twice.
    """
    rows = find_groups(references, logs)
    if len(rows) == 1:
        rows += _started_from(rows[0])
    return sorted(filter(None, rows), key=lambda row: list(STAGES).index(read_run(row[0])["stage"]))


def gather_rows(groups: Sequence[Sequence[Path]], split: str) -> list[ReportedRow]:
    """Read all of the runs of each row; raises `UserError` if one of their files is damaged."""
    rows = [[gather_run(folder, split) for folder in group] for group in groups]
    names = name_rows([[run.name for run in runs] for runs in rows])
    return [
        ReportedRow(name, runs, row_notes(name, folders, split))
        for name, runs, folders in zip(names, rows, groups, strict=True)
    ]


def gather_run(folder: Path, split: str) -> ReportedRun:
    """Read all of a run; raises `UserError` if one of its files is damaged."""
    config, fault = read_run(folder), evaluation_fault(folder, split)
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
        evaluation=_read_evaluation(folder, split) if fault is None else None,
        fault=fault,
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
    # A name, no path: a run of someone else must not name files to show.
    if Path(run.preset).name != run.preset or run.preset == "..":
        return {}
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


def _read_evaluation(folder: Path, split: str) -> SplitResults:
    results, cases = (read_by_split(folder / name)[split] for name in (RESULTS, CASES))
    clips, scores = cases_clips(cases)
    return SplitResults(results, cases, clips, measure_run(run_name(folder), clips, scores))
