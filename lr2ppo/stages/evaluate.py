"""Evaluate a run on a split, or compare evaluated runs in a table (`--table RUN RUN ...`)."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lr2ppo.config.schema import DataConfig, EvaluateConfig
from lr2ppo.data.annotations import graded
from lr2ppo.data.dataset import ClipDataset, open_store
from lr2ppo.data.features.names import found_in
from lr2ppo.distributed.processes import Processes, autocast, join_processes
from lr2ppo.errors import UserError
from lr2ppo.evaluation.calibration import describe_reward_model
from lr2ppo.evaluation.comparison import (
    METRIC_TITLES,
    Comparison,
    Row,
    compare,
    describe_best,
    describe_intervals,
    describe_size,
)
from lr2ppo.evaluation.relevance import describe_reliability, reliability_line
from lr2ppo.evaluation.results import (
    CASES,
    chance_means,
    describe_cases,
    evaluation_fault,
    mean_metrics,
    measure_run,
    read_by_split,
    read_table_rows,
    row_notes,
    run_name,
    trained_on_note,
    write_evaluation,
)
from lr2ppo.evaluation.scoring import Scores, clip_margins, score_clips, win_rates
from lr2ppo.evaluation.table import format_differences, format_table, wrap, write_csv
from lr2ppo.files import check_folder_inside, check_inside, check_output
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import Model, describe_model, load_model
from lr2ppo.ops.linear import use_fast_linear
from lr2ppo.report import write_report
from lr2ppo.report.load import find_rows
from lr2ppo.runs.lock import RESULTS_LOCK
from lr2ppo.runs.lookup import (
    RESULTS,
    find_groups,
    find_run,
    has_weights,
    read_calibration,
    read_data,
    read_finished,
    read_temperature,
    weights_fingerprint,
)
from lr2ppo.runs.stages import STAGES
from lr2ppo.terminal import say
from lr2ppo.training.inputs import Inputs, check_encoders, check_fit, has_order, left_out_warnings, open_inputs
from lr2ppo.training.run_folder import CHECKPOINTS, LAST
from lr2ppo.training.trained_on import find_trained_on

REPORT = "report.html"
# The keys of `data` that name the files of the splits.
SPLITS = {"test": "test", "val": "validation"}


def evaluate(config: EvaluateConfig) -> None:
    """Score every clip of the split once; write `results.json` and `cases.json` into the run's folder."""
    if config.name is None:
        raise UserError("name: is missing; run sh ppo_eval.sh RUN, or give name=RUN")
    folder = find_run(config.name, STAGES, config.logs)
    for name in (RESULTS, CASES, RESULTS_LOCK, REPORT):
        check_inside(folder / name)
    data = run_data(folder, config.root)
    # Before they are loaded: if they change in between, they are not taken for those evaluated.
    weights, calibration = weights_fingerprint(folder), read_calibration(folder)
    model = load_model(folder / "best")
    store = open_store(data)
    check_fit(model.encoder.config, store, data.frames, str(folder))
    warning = check_encoders([folder], store)
    key = SPLITS[config.split]
    file = getattr(data, key)
    with join_processes(config.device) as processes:
        inputs = open_inputs(data, {key: (file, "grades")}, store, model.encoder.config, processes)
        (dataset,) = inputs.datasets
        use_fast_linear(model).to(processes.device)
        with autocast(config.precision, processes.device):
            scores, judgement = score_split(model, dataset, processes, config, folder)
            last = score_last_step(folder, dataset, processes, config)
        store.check_unchanged()
        if not processes.is_main:
            return
        if calibration is not None:
            grades = [graded(clip) for clip in dataset.clips]
            judgement["reliability"] = describe_reliability(calibration, scores, grades)
        row = Row(run_name(folder), [measure_run(run_name(folder), dataset.clips, scores)])
        comparison = compare([row], config.bootstrap_samples, config.seed)
        results: dict[str, Any] = {name: asdict(estimate) for name, estimate in comparison.estimates[0].items()}
        results |= {
            "chance": chance_means(row),
            "clips": len(dataset),
            "left_out": dataset.left_out,
            "annotations": str(data.root / file),
            "fingerprints": evaluated_fingerprints(weights, inputs),
            "settings": evaluated_settings(config),
            "last": {} if last is None else mean_metrics(dataset.clips, last),
            **judgement,
        }
        trained_on = find_trained_on(folder, data.root)
        ids = sorted(clip.id for clip in dataset.clips)
        results["trained_on"] = found_in(ids, trained_on.clips)
        results["trained_on_unknown"] = trained_on.unknown
        results["selected_on"] = found_in(ids, trained_on.selected_on)
        if not has_weights(folder, weights):
            raise UserError(
                f"{folder}: its weights changed while they were evaluated; evaluate it once it has finished"
            )
        write_evaluation(folder, config.split, results, describe_cases(dataset.clips, scores))
    what = "scores" if isinstance(model, RelevanceRanker) else "share of pairs won"
    of_all = f"{len(dataset)} clips, labels ordered by {what}; {describe_intervals([row])}"
    of_all = "; warning: ".join([of_all, *left_out_warnings(dataset)])
    show_evaluation(folder, config, comparison, results, [warning, f"{folder}, {config.split} split, {of_all}"])


def score_split(
    model: Model, dataset: ClipDataset, processes: Processes, config: EvaluateConfig, folder: Path
) -> tuple[list[Scores], dict[str, Any]]:
    """Score every clip; return the scores, and for a reward model the part of `results.json` about it."""
    if not isinstance(model, PartialOrderModel):
        return score_clips(model, dataset, processes, config.clips_per_batch, config.workers), {}
    margins = clip_margins(model, dataset, processes, config.clips_per_batch, config.workers)
    judgement = {"judgement": judge_split(folder, dataset, margins, config)} if has_order(dataset) else {}
    return [win_rates(clip) for clip in margins], judgement


def score_last_step(
    folder: Path, dataset: ClipDataset, processes: Processes, config: EvaluateConfig
) -> list[Scores] | None:
    """Score every clip by the weights of a run's last step; None if it keeps none, as it has not finished."""
    check_folder_inside(folder / CHECKPOINTS)
    if not (folder / LAST).is_dir():
        return None
    model = use_fast_linear(load_model(folder / LAST)).to(processes.device)
    return score_clips(model, dataset, processes, config.clips_per_batch, config.workers)


def show_evaluation(
    folder: Path, config: EvaluateConfig, comparison: Comparison, results: dict[str, Any], headlines: list[str]
) -> None:
    """Print an evaluation, and write the run's report."""
    for headline in filter(None, headlines):
        say(f"{headline}\n")
    if read_finished(folder) is None:
        say("note: the run has not finished: these are its best weights so far; evaluate it again at its end\n")
    say(format_table(comparison, results["chance"]))
    if last := results["last"]:
        values = ", ".join(f"{METRIC_TITLES[name]} {value:.3f}" for name, value in last.items())
        say(f"\nby the weights of the last step: {values}")
    if reliability := results.get("reliability"):
        say(f"\n{reliability_line(reliability)}")
    if note := trained_on_note(results):
        say(f"\n{note}")
    report = write_report(find_rows([str(folder)], config.logs), config.split, folder / REPORT)
    say(f"\nwritten: {folder / RESULTS}, {folder / CASES}, {report}")


def is_evaluated(
    folder: Path,
    config: EvaluateConfig,
    data: DataConfig,
    processes: Processes,
    read: Callable[..., Inputs] = open_inputs,
) -> bool:
    """Whether a run's evaluation is of the weights it has, of these data and settings; all have to be known.

    `read` takes the place of `open_inputs`, for several runs that read the same. Raises `UserError` if the data cannot
    be used.
    """
    if evaluation_fault(folder, config.split) is not None:
        return False
    found = read_by_split(folder / RESULTS)[config.split]
    if found.get("settings") != evaluated_settings(config):
        return False
    shape = describe_model(folder / "best")[1]
    key = SPLITS[config.split]
    inputs = read(data, {key: (getattr(data, key), "grades")}, open_store(data), shape, processes)
    return bool(found.get("fingerprints") == evaluated_fingerprints(weights_fingerprint(folder), inputs))


def evaluated_settings(config: EvaluateConfig) -> dict[str, Any]:
    """The settings that the figures of an evaluation depend on."""
    return config.model_dump(include={"precision", "bootstrap_samples", "seed"})


def evaluated_fingerprints(weights: str | None, inputs: Inputs) -> dict[str, str | None]:
    """The fingerprints of all that an evaluation depends on: weights, and the annotations and features of one file."""
    features = inputs.fingerprints["features"]
    (annotations,) = (found for key, found in inputs.fingerprints.items() if key != "features")
    return {"weights": weights, "annotations": annotations, "features": features}


def run_data(folder: Path, root: Path | None) -> DataConfig:
    """The data that a run was trained on, under another root if one is given."""
    data = read_data(folder)
    return data if root is None else data.model_copy(update={"root": root})


def judge_split(
    folder: Path, dataset: ClipDataset, margins: Sequence[Scores], config: EvaluateConfig
) -> dict[str, Any]:
    """The part of `results.json` about a reward model, besides the ranking metrics."""
    grades = [graded(clip) for clip in dataset.clips]
    return describe_reward_model(grades, margins, read_temperature(folder), config.bootstrap_samples, config.seed)


def show_table(references: Sequence[str], config: EvaluateConfig, csv: Path | None = None) -> None:
    """Print a table of evaluated runs, with every pair's difference; `A,B,C` are one row, such as one run per seed.

    Writes all values to `csv` if it is given.
    """
    groups = find_groups(references, config.logs)
    rows = read_table_rows(groups, config.split)
    comparison = compare(rows, config.bootstrap_samples, config.seed)
    say(wrap(f"{config.split} split, {describe_size(rows)}; {describe_intervals(rows)}") + "\n")
    say(format_table(comparison, chance_means(rows[0])))
    if len(rows) > 1:
        say(f"\n{format_differences(comparison)}")
    say("\n" + wrap(describe_best(comparison)))
    for row, group in zip(rows, groups, strict=True):
        for note in row_notes(row.name, group, config.split):
            say(wrap(note))
    if csv is not None:
        write_csv(comparison, check_output(csv))
        say(f"\nwritten: {csv}")
