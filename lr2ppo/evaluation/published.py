"""Compare runs of the three stages with the published figures, stage by stage."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lr2ppo.errors import UserError
from lr2ppo.evaluation.comparison import METRIC_TITLES
from lr2ppo.evaluation.results import evaluation_fault, read_by_split, trained_on_note
from lr2ppo.evaluation.table import CELL
from lr2ppo.runs.lookup import RESULTS, best_validation, read_finished
from lr2ppo.runs.stages import STAGES, Stage

CURVES = Path(__file__).parent / "published_curves"
NDCG = ("ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "ndcg@20")
NAME_WIDTH = 28


@dataclass(frozen=True)
class Published:
    """A stage's published results: its curve, the metric that selected its best row, and the training time."""

    curve: str
    metrics: tuple[str, ...]
    chosen_by: str
    minutes: int


PUBLISHED = {
    "pointwise": Published("pointwise_val.csv", NDCG, "ndcg@20", 27),
    "reward": Published("reward_val.csv", ("pair_accuracy",), "pair_accuracy", 138),
    "ppo": Published("ppo_val.csv", NDCG, "ndcg@20", 636),
}
PUBLISHED_NAMES = {"pair_accuracy": "val_pair_accuracy"}
LOGGED_NAMES = {name: f"validation/{name}" for name in NDCG} | {
    "val_pair_accuracy": "validation/pair_accuracy",
    "train_pair_accuracy": "train/accuracy",
    "train_loss": "train/loss",
}


def published_best(published: Published) -> dict[str, float]:
    """Return the metrics of the published curve's best row."""
    with (CURVES / published.curve).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    curve = [{name: float(row[PUBLISHED_NAMES.get(name, name)]) for name in published.metrics} for row in rows]
    return max(curve, key=lambda row: row[published.chosen_by])


def published_curve(published: Published) -> dict[str, list[float]]:
    """Return the published curve under the names that a run logs, one value per row."""
    with (CURVES / published.curve).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {LOGGED_NAMES.get(name, f"train/{name}"): [float(row[name]) for row in rows] for name in rows[0]}


def compare_runs(runs: Mapping[str, Path]) -> str:
    """Return the table of one run per stage; raises `UserError` if one has not finished."""
    return "\n\n".join(compare_stage(STAGES[stage], run) for stage, run in runs.items())


def compare_stage(stage: Stage, run: Path) -> str:
    """Return a stage's part of the table: published, ours and the difference on validation, ours on test, and times."""
    published, ours = PUBLISHED[stage.name], best_validation(run)
    if not ours:
        raise UserError(
            f"{run}: found converted weights without validation metrics; wanted a run that was trained here"
        )
    theirs = published_best(published)
    lines = [
        f"{stage.title:<{NAME_WIDTH}}" + "".join(f"{METRIC_TITLES[name]:>{CELL}}" for name in published.metrics),
        _row("published, validation", theirs),
        _row("ours, validation", {name: ours[name] for name in published.metrics}),
        _row("difference", {name: ours[name] - theirs[name] for name in published.metrics}, sign="+"),
    ]
    test, fault = read_by_split(run / RESULTS).get("test"), evaluation_fault(run, "test")
    if test is not None and fault is not None:
        lines.append(f"  ours, test: not shown, the run {fault}")
    elif test is not None:
        lines.append(_row("ours, test", {name: test[name]["mean"] for name in published.metrics}))
        intervals = [f"[{test[name]['low']:.3f} {test[name]['high']:.3f}]" for name in published.metrics]
        lines.append(" " * NAME_WIDTH + "".join(f"{interval:>{CELL}}" for interval in intervals))
        lines += [f"  {note}"] if (note := trained_on_note(test)) else []
    seconds = (read_finished(run) or {})["seconds"]
    lines.append(f"  time: published {published.minutes} min on 4 GPUs, ours {seconds / 60:.1f} min")
    return "\n".join(lines)


def _row(name: str, values: Mapping[str, float], sign: str = "-") -> str:
    return f"  {name:<{NAME_WIDTH - 2}}" + "".join(f"{value:>{sign}{CELL}.4f}" for value in values.values())
