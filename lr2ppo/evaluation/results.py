"""The files that an evaluation writes into a run's folder: `results.json` and `cases.json`, with a part per split."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lr2ppo.data.annotations import Clip, graded
from lr2ppo.errors import UserError, show
from lr2ppo.evaluation.comparison import METRIC_NAMES, ClipKey, Row, Run, mean_without_nan, name_rows
from lr2ppo.evaluation.metrics import CUTOFFS, chance_ndcg
from lr2ppo.evaluation.scoring import Scores, pad_lists, ranking_metrics
from lr2ppo.files import read_own_json, write_json
from lr2ppo.runs.lock import results_locked
from lr2ppo.runs.lookup import RESULTS, differing_settings, is_outdated, read_finished, read_inputs
from lr2ppo.runs.records import Case, Interval, SplitResult, check_record

CASES = "cases.json"
# What runs on the same clips should have read alike, by the keys of their `inputs.json`.
DATA_READ = ("train", "graded", "validation")


def write_evaluation(folder: Path, split: str, results: Mapping[str, Any], cases: Sequence[Mapping[str, Any]]) -> None:
    """Set one split's part of a run's `results.json` and `cases.json`, and keep the others.

    Another process that does so waits meanwhile. Raises `UserError` if a file is damaged, before any is written.
    """
    with results_locked(folder):
        # The results last: they say of which weights both are.
        written = {
            path: read_by_split(path) | {split: value}
            for path, value in ((folder / CASES, cases), (folder / RESULTS, results))
        }
        for path, content in written.items():
            write_json(path, content)


def read_cases(folder: Path, split: str) -> list[dict[str, Any]]:
    """Read a run's cases of a split, as from `describe_cases`.

    Raises `UserError` if it was not evaluated on the split, or with other weights than it has now.
    """
    fault = evaluation_fault(folder, split)
    if fault is not None:
        command = shlex.join(["sh", "ppo_eval.sh", run_name(folder), f"split={split}"])
        raise UserError(f"{folder}: {fault}; run: {command}")
    cases: list[dict[str, Any]] = read_by_split(folder / CASES)[split]
    return cases


def evaluation_fault(folder: Path, split: str) -> str | None:
    """Say why a run's evaluation on a split cannot be shown as the run's; None if it can."""
    results, cases = (read_by_split(folder / name) for name in (RESULTS, CASES))
    if split not in results or split not in cases:
        return f"has not been evaluated on {split}"
    if is_outdated(folder, results[split]):
        return f"was evaluated on {split} with other weights than it has now"
    return None


def trained_on_note(result: Mapping[str, Any]) -> str:
    """Warn of the clips of a split's results that the run, or one that it started from, was trained on; else empty.

    If the clips of such a run are not known, say so.
    """
    found, unknown = result.get("trained_on", []), result.get("trained_on_unknown", [])
    notes = (
        [f"warning: {len(found)} of the {result['clips']} clips are trained on, such as {found[0]}"] if found else []
    )
    if unknown:
        whether = "more" if found else "any"
        notes.append(
            f"note: the training clips of {', '.join(unknown)} are not known, so it cannot be told whether {whether} "
            "of these are among them"
        )
    return "; ".join(notes)


def row_notes(name: str, folders: Sequence[Path], split: str) -> list[str]:
    """Say what a row of evaluated runs should not be read without: warnings of its runs, and what differs in them."""
    results = [read_by_split(folder / RESULTS).get(split, {}) for folder in folders]
    named: dict[str, list[str]] = {}
    for folder, result in zip(folders, results, strict=True):
        notes = [trained_on_note(result), _left_out_note(result)]
        notes += [_selection_note(folder, result)] if split != "val" else []
        notes += [f"warning: {warning}" for warning in (read_finished(folder) or {}).get("warnings", [])]
        for note in filter(None, notes):
            named.setdefault(note, []).append(run_name(folder))
    # What is true of all runs is said once.
    found = [
        f"{run}: {note}" for note, runs in named.items() for run in ([name] if len(runs) == len(folders) else runs)
    ]
    differing = differing_settings(folders)
    if len({result.get("fingerprints", {}).get("annotations") for result in results}) == 1:
        inputs = [read_inputs(folder) for folder in folders]
        differing += [f"the content of {key}" for key in DATA_READ if len({own.get(key) for own in inputs}) > 1]
    return found + ([f"{name}: note: its runs differ in {', '.join(differing)}"] if differing else [])


def _selection_note(folder: Path, result: Mapping[str, Any]) -> str:
    """Warn if clips that selected weights of the run, or of one that it started from, are among the evaluated ones."""
    clips = result.get("fingerprints", {}).get("annotations")
    found = len(result.get("selected_on", []))
    # Runs of earlier versions know their file only.
    if not found and clips is not None and read_inputs(folder).get("validation") == clips:
        found = result["clips"]
    return f"warning: its best step was chosen on {found} of the {result['clips']} clips" if found else ""


def _left_out_note(result: Mapping[str, Any]) -> str:
    left_out = result.get("left_out", [])
    return f"warning: {len(left_out)} clips were left out for faults, such as {left_out[0]}" if left_out else ""


def describe_cases(clips: Sequence[Clip], scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """Return each clip's labels, grades and scores as given, positions sorted by score, text and frames."""
    return [
        {
            "id": clip.id,
            "labels": list(clip.labels),
            "grades": graded(clip).tolist(),
            "scores": row.tolist(),
            "order": np.argsort(-row, kind="stable").tolist(),
            "description": clip.description,
            "images": list(clip.images),
        }
        for clip, row in zip(clips, scores, strict=True)
    ]


def cases_clips(cases: Sequence[Mapping[str, Any]]) -> tuple[list[Clip], list[Scores]]:
    """Return the clips and scores of cases."""
    clips = [
        Clip(
            case["id"],
            tuple(case["labels"]),
            np.array(case["grades"]),
            description=case.get("description", ""),
            images=tuple(case.get("images", ())),
        )
        for case in cases
    ]
    return clips, [np.array(case["scores"]) for case in cases]


def measure_run(name: str, clips: Sequence[Clip], scores: Sequence[Scores]) -> Run:
    """Return a run to compare: its clips and the metrics of the order that its scores make."""
    keys = tuple(ClipKey(clip.id, clip.labels, tuple(graded(clip).tolist())) for clip in clips)
    return Run(name, keys, ranking_metrics(clips, scores))


def mean_metrics(clips: Sequence[Clip], scores: Sequence[Scores]) -> dict[str, float]:
    """Return the mean of each metric over the clips that have it; those that none has are left out."""
    means = {name: mean_without_nan(values) for name, values in ranking_metrics(clips, scores).items()}
    return {name: mean for name, mean in means.items() if not np.isnan(mean)}


def mean_of_last_step(folders: Sequence[Path], split: str) -> float | None:
    """Return the mean NDCG over runs by the weights of their last steps; None if it is not known of all."""
    found = [read_by_split(folder / RESULTS).get(split, {}).get("last", {}).get("ndcg") for folder in folders]
    return None if None in found else float(np.mean(found))


def read_table_rows(groups: Sequence[Sequence[Path]], split: str) -> list[Row]:
    """Read a row of each group of runs' folders; raises `UserError` if a run was not evaluated on the split."""
    names = name_rows([[run_name(folder) for folder in group] for group in groups])
    return [
        Row(name, [measure_run(run_name(folder), *cases_clips(read_cases(folder, split))) for folder in group])
        for name, group in zip(names, groups, strict=True)
    ]


def chance_means(row: Row) -> dict[str, float]:
    """Return the expected metrics of a random order of the labels of a row's clips."""
    own = [_chance([np.array(key.grades, dtype=np.int64) for key in run.clips]) for run in row.runs]
    return {name: float(np.mean([means[name] for means in own])) for name in own[0]}


def _chance(grades: Sequence[NDArray[np.int64]]) -> dict[str, float]:
    _, targets, mask = pad_lists([np.zeros(len(row)) for row in grades], grades)
    means = {name: float(np.nanmean(chance_ndcg(targets, mask, k).numpy())) for name, k in CUTOFFS.items()}
    return means | {"pair_accuracy": 0.5}


def run_name(folder: Path) -> str:
    """Return `STAGE/NAME`."""
    return f"{folder.parent.name}/{folder.name}"


def read_by_split(path: Path) -> dict[str, Any]:
    """Read all parts of a file, by split; empty if it does not exist. Raises `UserError` if it is damaged."""
    if not path.exists():
        return {}
    try:
        content = read_own_json(path)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {error}; remove it and evaluate the run again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: found {type(content).__name__}, wanted a mapping of splits; evaluate the run again")
    try:
        for value in content.values():
            (_check_cases if path.name == CASES else _check_results)(value)
    except ValueError as error:
        raise UserError(f"{path}: {error}; remove it and evaluate the run again") from None
    return content


def _check_results(found: Any) -> None:
    check_record(SplitResult, found)
    check_record(dict[str, Interval], {name: found.get(name) for name in METRIC_NAMES})
    check_record(dict[str, float], {name: found["chance"].get(name) for name in METRIC_NAMES})


def _check_cases(found: Any) -> None:
    check_record(Annotated[list[Case], Field(min_length=1)], found)
    for case in found:
        lengths = {len(case[key]) for key in ("labels", "grades", "scores", "order")}
        if len(lengths) > 1 or sorted(case["order"]) != list(range(len(case["labels"]))):
            raise ValueError(f"clip {show(case['id'])}: its labels, grades, scores and order do not belong together")
