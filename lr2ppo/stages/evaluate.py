"""Evaluate a run on a split, or show evaluated runs side by side (`--table RUN RUN ...`)."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lr2ppo.comparison import METRICS, ClipMetrics, Row, describe_gain, format_table, summarise
from lr2ppo.config import DataConfig, EvaluateConfig
from lr2ppo.config_file import load_config
from lr2ppo.data.annotations import Clip, graded
from lr2ppo.data.dataset import open_store
from lr2ppo.engine.command import read_stage_config, stage_parser
from lr2ppo.engine.earlier import COMMANDS, find_run, is_converted, read_run
from lr2ppo.engine.inputs import check_fit, open_inputs
from lr2ppo.engine.processes import autocast, join_processes
from lr2ppo.engine.scoring import Scores, pad_lists, ranking_metrics, score_clips
from lr2ppo.errors import UserError, reports_user_errors
from lr2ppo.files import write_json
from lr2ppo.metrics import CUTOFFS, chance_ndcg
from lr2ppo.models import RelevanceRanker
from lr2ppo.models.weights import load_model

TRAINING_STAGES = tuple(COMMANDS)


def evaluate(config: EvaluateConfig, preset: Path) -> None:
    """Score every clip of the split once; write `results.json` and `cases.json` into the run's folder.

    `preset` is the folder of the YAML file, which tells the data of a run that is but a converted checkpoint.
    """
    if config.name is None:
        raise UserError("name: is missing; run sh ppo_eval.sh RUN, or give name=RUN")
    folder = find_run(config.name, TRAINING_STAGES, config.logs)
    data = run_data(folder, config.root, preset)
    model = load_model(folder / "best")
    store = open_store(data)
    check_fit(model.encoder.config, store, data.frames, str(folder))
    file = data.test if config.split == "test" else data.validation
    with join_processes(config.device) as processes:
        (dataset,) = open_inputs(data, [(file, "grades")], store, model.encoder.config, processes)
        model.to(processes.device)
        with autocast(config.precision, processes.device):
            scores = score_clips(model, dataset, processes, config.clips_per_batch, config.workers)
        if not processes.is_main:
            return
        metrics = ranking_metrics(dataset.clips, scores)
        estimates = summarise(metrics, config.bootstrap_samples, config.seed)
        results: dict[str, Any] = {name: asdict(estimate) for name, estimate in estimates.items()}
        references = reference_rows(dataset.clips)
        results["chance"] = {name: float(np.nanmean(values)) for name, values in references[0].metrics.items()}
        results |= {"clips": len(dataset), "annotations": str(data.root / file)}
        update_json(folder / "results.json", config.split, results)
        update_json(folder / "cases.json", config.split, describe_cases(dataset.clips, scores))
    what = "scores" if isinstance(model, RelevanceRanker) else "share of pairs won"
    print(
        f"{folder}, {config.split} split, {len(dataset)} clips, labels ordered by {what}; 95 % intervals over clips\n"
    )
    print(format_table([Row(run_name(folder), metrics)], config.bootstrap_samples, config.seed, references))
    print(f"\nwritten: {folder / 'results.json'}, {folder / 'cases.json'}")


def run_data(folder: Path, root: Path | None, preset: Path) -> DataConfig:
    """The data a run was made for, or the preset's for a converted checkpoint; under another root if one is given."""
    if is_converted(folder):
        data: DataConfig = load_config(preset / "pointwise.yaml", "pointwise").data
    else:
        data = DataConfig.model_validate(read_run(folder)["data"])
    return data if root is None else data.model_copy(update={"root": root})


def describe_cases(clips: Sequence[Clip], scores: Sequence[Scores]) -> list[dict[str, Any]]:
    """Each clip's labels, grades and scores as given, and the order of positions that the scores make."""
    return [
        {
            "id": clip.id,
            "labels": list(clip.labels),
            "grades": graded(clip).tolist(),
            "scores": row.tolist(),
            "order": np.argsort(-row, kind="stable").tolist(),
        }
        for clip, row in zip(clips, scores, strict=True)
    ]


def update_json(path: Path, split: str, value: Any) -> None:
    """Set one split's part of a JSON file and keep the others."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, known | {split: value})


def show_table(runs: Sequence[str], config: EvaluateConfig) -> None:
    """Print evaluated runs side by side; `A,B,C` is one row of several runs, such as one run a seed."""
    rows = []
    clips: list[Clip] = []
    for number, group in enumerate(runs):
        folders = [find_run(name, TRAINING_STAGES, config.logs) for name in group.split(",")]
        found, scores = read_cases(folders, config.split)
        if number == 0:
            clips = found
        elif [clip.id for clip in found] != [clip.id for clip in clips]:
            raise UserError(
                f"{group}: was evaluated on other clips than {runs[0]}; only the same clips can be compared"
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


def read_cases(folders: Sequence[Path], split: str) -> tuple[list[Clip], list[Scores]]:
    """The clips and scores that evaluations have left, several runs one after another."""
    clips: list[Clip] = []
    scores: list[Scores] = []
    for place, folder in enumerate(folders):
        path = folder / "cases.json"
        cases = json.loads(path.read_text(encoding="utf-8")).get(split) if path.exists() else None
        if cases is None:
            raise UserError(
                f"{folder}: has not been evaluated on {split}; run: sh ppo_eval.sh {run_name(folder)} split={split}"
            )
        for case in cases:
            clips.append(Clip(f"{place}/{case['id']}", tuple(case["labels"]), np.array(case["grades"])))
            scores.append(np.array(case["scores"]))
    return clips, scores


def reference_rows(clips: Sequence[Clip]) -> tuple[Row, Row]:
    """What a random order is expected to reach, and a perfect one."""
    grades = [graded(clip) for clip in clips]
    _, targets, mask = pad_lists([np.zeros(len(row)) for row in grades], grades)
    chance: ClipMetrics = {name: chance_ndcg(targets, mask, k).numpy() for name, k in CUTOFFS.items()}
    chance["pair_accuracy"] = np.full(len(clips), 0.5)
    perfect = {name: np.ones(len(clips)) for name in METRICS}
    return Row("chance", chance), Row("perfect order", perfect)


def run_name(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


@reports_user_errors
def main() -> None:
    parser = stage_parser("evaluate", "python -m lr2ppo.stages.evaluate --config configs/mini/evaluate.yaml name=demo")
    parser.add_argument(
        "--table", nargs="+", metavar="RUN", help="show evaluated runs side by side; A,B pools runs A and B"
    )
    arguments = parser.parse_intermixed_args()
    table = arguments.table or []
    # Overrides may stand behind the runs: what holds an equals sign is one.
    arguments.overrides += [item for item in table if "=" in item]
    config = read_stage_config(arguments, "evaluate")
    if config is None:
        return
    torch.manual_seed(config.seed)
    if arguments.table:
        show_table([item for item in table if "=" not in item], config)
    else:
        evaluate(config, arguments.config.parent)


if __name__ == "__main__":
    main()
