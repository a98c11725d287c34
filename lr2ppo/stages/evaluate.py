"""Evaluate a run on a split, or compare evaluated runs in a table (`--table RUN RUN ...`)."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lr2ppo.config.schema import DataConfig, EvaluateConfig
from lr2ppo.data.annotations import Clip, graded
from lr2ppo.data.dataset import ClipDataset, open_store
from lr2ppo.distributed.processes import autocast, join_processes
from lr2ppo.errors import UserError
from lr2ppo.evaluation.calibration import describe_reward_model
from lr2ppo.evaluation.comparison import Row, describe_gain, estimate_means, format_table
from lr2ppo.evaluation.results import (
    CASES,
    cases_clips,
    describe_cases,
    read_cases,
    reference_rows,
    run_name,
    same_clips,
    write_split,
)
from lr2ppo.evaluation.scoring import Scores, clip_margins, ranking_metrics, score_clips, win_rates
from lr2ppo.models import PartialOrderModel, RelevanceRanker
from lr2ppo.models.weights import load_model
from lr2ppo.ops.linear import use_fast_linear
from lr2ppo.report import write_report
from lr2ppo.report.load import find_runs
from lr2ppo.runs.lookup import RESULTS, find_run, read_data, read_temperature
from lr2ppo.runs.stages import STAGES
from lr2ppo.training.inputs import check_fit, left_out_note, open_inputs


def evaluate(config: EvaluateConfig) -> None:
    """Score every clip of the split once; write `results.json` and `cases.json` into the run's folder."""
    if config.name is None:
        raise UserError("name: is missing; run sh ppo_eval.sh RUN, or give name=RUN")
    folder = find_run(config.name, STAGES, config.logs)
    data = run_data(folder, config.root)
    model = load_model(folder / "best")
    store = open_store(data)
    check_fit(model.encoder.config, store, data.frames, str(folder))
    key = "test" if config.split == "test" else "validation"
    with join_processes(config.device) as processes:
        inputs = open_inputs(data, {key: "grades"}, store, model.encoder.config, processes)
        (dataset,) = inputs.datasets
        use_fast_linear(model).to(processes.device)
        judged: dict[str, Any] = {}
        with autocast(config.precision, processes.device):
            if isinstance(model, PartialOrderModel):
                margins = clip_margins(model, dataset, processes, config.clips_per_batch, config.workers)
                scores = [win_rates(judged_clip) for judged_clip in margins]
                judged = {"judgement": judge_split(folder, dataset, margins, config)}
            else:
                scores = score_clips(model, dataset, processes, config.clips_per_batch, config.workers)
        if not processes.is_main:
            return
        metrics = ranking_metrics(dataset.clips, scores)
        estimates = estimate_means(metrics, config.bootstrap_samples, config.seed)
        results: dict[str, Any] = {name: asdict(estimate) for name, estimate in estimates.items()}
        references = reference_rows(dataset.clips)
        results["chance"] = {name: float(np.nanmean(values)) for name, values in references[0].metrics.items()}
        results |= {
            "clips": len(dataset),
            "annotations": str(data.root / getattr(data, key)),
            "fingerprints": {"annotations": inputs.fingerprints[key], "features": inputs.fingerprints["features"]},
            **judged,
        }
        write_split(folder / RESULTS, config.split, results)
        write_split(folder / CASES, config.split, describe_cases(dataset.clips, scores))
    what = "scores" if isinstance(model, RelevanceRanker) else "share of pairs won"
    of_all = f"{len(dataset)} clips, labels ordered by {what}; 95 % intervals over clips{left_out_note(dataset)}"
    print(f"{folder}, {config.split} split, {of_all}\n")
    print(format_table([Row(run_name(folder), metrics)], config.bootstrap_samples, config.seed, references))
    report = write_report(find_runs([str(folder)], config.logs), config.split, folder / "report.html")
    print(f"\nwritten: {folder / RESULTS}, {folder / CASES}, {report}")


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


def show_table(runs: Sequence[str], config: EvaluateConfig) -> None:
    """Print a table of evaluated runs; `A,B,C` pools several runs in one row, such as one run per seed."""
    rows = []
    clips: list[Clip] = []
    for number, group in enumerate(runs):
        folders = [find_run(name, STAGES, config.logs) for name in group.split(",")]
        found, scores = pool_cases(folders, config.split)
        if number == 0:
            clips = found
        elif not same_clips(found, clips):
            raise UserError(
                f"{group}: was evaluated on other clips, or the same with other labels or grades, than {runs[0]}; "
                "evaluate both on the same split of the same data"
            )
        name = run_name(folders[0]) if len(folders) == 1 else f"{folders[0].parent.name} x {len(folders)}"
        rows.append(Row(name, ranking_metrics(found, scores)))
    seeds = max(group.count(",") + 1 for group in runs)
    pooled = f" of {seeds} runs" if seeds > 1 else ""
    print(f"{config.split} split, {len(clips)} clips{pooled}; 95 % bootstrap intervals over clips\n")
    print(format_table(rows, config.bootstrap_samples, config.seed, reference_rows(clips)))
    print()
    for before, after in pairwise(rows):
        print(describe_gain(before, after, config.bootstrap_samples, config.seed))


def pool_cases(folders: Sequence[Path], split: str) -> tuple[list[Clip], list[Scores]]:
    """Concatenate the clips and scores of several evaluated runs."""
    clips: list[Clip] = []
    scores: list[Scores] = []
    for place, folder in enumerate(folders):
        own_clips, own_scores = cases_clips(read_cases(folder, split), prefix=f"{place}/")
        clips += own_clips
        scores += own_scores
    return clips, scores
