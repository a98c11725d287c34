"""Compare methods: train and evaluate the runs of every row, data set and seed that are not there yet."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product
from os import cpu_count, environ
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lr2ppo.config.load import load_config
from lr2ppo.config.schema import CompareConfig, DataConfig, EvaluateConfig, PointwiseConfig
from lr2ppo.data.annotations import Clip, read_clips
from lr2ppo.data.dataset import open_store
from lr2ppo.data.validate import changed_frames
from lr2ppo.distributed.commands import Command, run_commands
from lr2ppo.distributed.processes import Processes, choose_device
from lr2ppo.errors import UserError, raise_faults
from lr2ppo.evaluation.comparison import Row, Run, describe_intervals, describe_size
from lr2ppo.evaluation.methods import (
    Method,
    MethodTable,
    describe_methods,
    format_latex,
    format_markdown,
    format_summary_latex,
    format_summary_markdown,
    format_summary_text,
    format_text,
    show_time,
)
from lr2ppo.evaluation.results import (
    cases_clips,
    chance_means,
    mean_of_last_step,
    measure_run,
    read_cases,
    row_notes,
)
from lr2ppo.evaluation.table import format_table, wrap, write_csv
from lr2ppo.files import write_text
from lr2ppo.models.weights import describe_model, model_shapes
from lr2ppo.report.methods import write_methods_page
from lr2ppo.runs.lookup import read_finished, source_runs
from lr2ppo.runs.stages import STAGES
from lr2ppo.stages.comparison_plan import Attempt, make_plan
from lr2ppo.stages.evaluate import SPLITS, is_evaluated
from lr2ppo.stages.trainings import SEED, ReadOnce, Training, check_trained, settings_for
from lr2ppo.terminal import say

PAGE = "report.html"


def run_comparison(config: CompareConfig) -> dict[str, list[Method]]:
    """Train and evaluate what is missing, and return the rows of each data set.

    Raises `UserError` before any run starts if a setting or file cannot be used, or if a finished run has other data
    than now; exits with the exit code of a command that fails.
    """
    evaluation = load_config(config.preset / "evaluate.yaml", "evaluate", [f"split={config.split}"])
    plan = make_plan(config)
    finished = [training for training in plan.trainings if training.is_finished]
    check_trained(finished)
    missing = [training for training in plan.trainings if not training.is_finished]
    untrained = _zero_shot_methods(config)
    say(f"{len(plan.trainings)} runs in {config.logs}, {len(finished)} of them finished")
    _run_each("train", missing, lambda training: training.command(config.preset), config.parallel)
    # The preset and the data may have changed meanwhile: all rows must be of the same.
    plan.check_unchanged()
    check_trained(missing)
    plan.check_validations()
    shown = {
        (data, name): (max(attempts, key=Attempt.validation), len(attempts))
        for data, rows in plan.attempts.items()
        for name, attempts in rows.items()
    }
    _evaluate_all(config, evaluation, [attempt for attempt, _ in shown.values()])
    trained = {
        (data, name): _trained_method(name, attempt, tried, config.split)
        for (data, name), (attempt, tried) in shown.items()
    }
    methods = trained | untrained
    return {data: [methods[data, name] for name in config.rows] for data in config.data}


def show_comparison(methods: Mapping[str, Sequence[Method]], config: CompareConfig, name: str, out: Path) -> None:
    """Print the table of each data set, and write all as text, Markdown, CSV, LaTeX and a page into a folder."""
    tables = [MethodTable.make(data, own, config.against, config.split) for data, own in methods.items()]
    for table in tables:
        text = _as_text(table, config.split)
        say(f"\n{text}")
        stem = f"{table.data}-" if len(tables) > 1 else ""
        for ending, content in (("txt", f"{text}\n"), ("md", format_markdown(table)), ("tex", format_latex(table))):
            write_text(out / f"{stem}table.{ending}", content)
        write_csv(table.comparison, out / f"{stem}table.csv")
    if len(tables) > 1:
        text = format_summary_text(tables)
        say(f"\n{text}")
        write_text(out / "summary.txt", f"{text}\n")
        write_text(out / "summary.md", format_summary_markdown(tables))
        write_text(out / "summary.tex", format_summary_latex(tables))
    write_methods_page(name, tables, config.axis, out / PAGE)
    say(f"\nwritten: {out / PAGE}, and beside it each table as txt, md, csv and tex")


def _trained_method(name: str, attempt: Attempt, tried: int, split: str) -> Method:
    """Measure the attempt that a row shows, of all that it tried."""
    folders, chains = [training.folder for training in attempt.shown], _chains(attempt)
    # The scores of several members are kept for their best weights only.
    is_alone = all(len(members) == 1 for members in attempt.runs)
    return Method(
        row=_measure(name, attempt, split),
        stage=attempt.shown[0].stage.name,
        seconds=float(np.mean([sum(ended["seconds"] for ended in chain) for chain in chains])),
        weights=_weights(attempt),
        tried=tried,
        chosen=attempt.values,
        last=mean_of_last_step(folders, split) if is_alone else None,
        commits={ended["commit"] for chain in chains for ended in chain if ended.get("commit") is not None},
        notes=row_notes(name, folders, split),
    )


def _zero_shot_methods(config: CompareConfig) -> dict[tuple[str, str], Method]:
    """Measure the rows that are not trained, by data set and row; raises `UserError` if one cannot be."""
    if not config.zero_shot_rows:
        return {}
    # Importing transformers takes seconds.
    from lr2ppo.evaluation.zero_shot import zero_shot_scores

    methods = {}
    for (data, settings), (name, row) in product(config.data.items(), config.zero_shot_rows.items()):
        runs = []
        for seed in config.seeds:
            given = [setting.replace(SEED, str(seed)) for setting in (*config.settings, *settings, *config.overrides)]
            first: PointwiseConfig = load_config(
                config.preset / "pointwise.yaml", "pointwise", settings_for(STAGES["pointwise"], given)
            )
            root, device = first.data.root, choose_device(first.device)
            clips = read_clips(root / getattr(first.data, SPLITS[config.split]), need="grades")
            if config.trained_rows:
                _check_frames(clips, first.data, row.frames_root or root)
            scores, weights = zero_shot_scores(row, clips, root, first.data.frames, device, config.logs / "zero_shot")
            runs.append(measure_run(name, clips, scores))
        notes = [f"{name}: {row.zero_shot}, not trained; its weights may know these clips"]
        methods[data, name] = Method(Row(name, runs), "zero shot", 0.0, weights, 1, (), None, frozenset(), notes)
    return methods


def _check_frames(clips: Sequence[Clip], data: DataConfig, frames_root: Path) -> None:
    """Raise `UserError` if clips have other frames now than those that the features of trained rows were made from."""
    faults = map(str, changed_frames(clips, open_store(data), frames_root))
    raise_faults(frames_root, list(faults), "a table must be of the same frames; restore them or extract them again")


def _as_text(table: MethodTable, split: str) -> str:
    rows = table.comparison.rows
    parts = [
        wrap(f"{table.data}, {split} split, {describe_size(rows)}; {describe_intervals(rows)}"),
        format_table(table.comparison, chance_means(table.against.row)),
        format_text(table),
        wrap(describe_methods(table)),
        *map(wrap, table.notes),
    ]
    return "\n\n".join(parts)


def _evaluate_all(config: CompareConfig, evaluation: EvaluateConfig, attempts: Iterable[Attempt]) -> None:
    """Evaluate the shown runs that are not; raises `UserError` if their data change meanwhile."""
    shown = {training.folder: training for attempt in attempts for training in attempt.shown}
    missing = _unevaluated(shown.values(), evaluation)
    _run_each("evaluate", missing, lambda training: training.evaluation(config.preset, config.split), config.parallel)
    # Each new evaluation read them at another time: all rows must be of the same.
    if missing and (outdated := _unevaluated(shown.values(), evaluation)):
        raise UserError(
            f"{outdated[0].folder}: the data or the settings of evaluations changed while runs were evaluated; run the "
            "same command again"
        )


def _unevaluated(trainings: Iterable[Training], evaluation: EvaluateConfig) -> list[Training]:
    """The runs without an evaluation of the data and settings that there are now."""
    alone, read = Processes(rank=0, world_size=1, device=torch.device("cpu")), ReadOnce()
    return [each for each in trainings if not is_evaluated(each.folder, evaluation, each.config.data, alone, read)]


def _run_each(
    what: str, trainings: Sequence[Training], arguments: Callable[[Training], Sequence[str]], parallel: int
) -> None:
    """Run a command for each training; print each with how many there are and how long those that are left take."""
    started = time.monotonic()
    numbers = {training.name: number for number, training in enumerate(trainings, start=1)}

    def show(command: Command, ended: int) -> None:
        passed = time.monotonic() - started
        left = f", about {show_time(passed / ended * (len(trainings) - ended))} left" if ended else ""
        say(f"{what} {numbers[command.name]} of {len(trainings)}{left}: {command.name}")

    # Those that are trained already need nothing.
    commands = [Command(each.name, arguments(each), set() if each.is_finished else each.sources) for each in trainings]
    run_commands(commands, _places(min(parallel, max(1, len(commands)))), show)


def _places(count: int) -> list[dict[str, str]]:
    """The environment variables of the commands that run at once: each has its share of the cores, and one GPU."""
    threads = {} if "OMP_NUM_THREADS" in environ else {"OMP_NUM_THREADS": str(max(1, (cpu_count() or 1) // count))}
    gpus = environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    own = [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus.split(",") if gpu] or [{}]
    return [threads | own[place % len(own)] for place in range(count)]


def _measure(name: str, attempt: Attempt, split: str) -> Row:
    """Read the row of an attempt: for each seed its run, or the order by the mean score of all members."""
    runs: list[Run] = []
    for members in attempt.runs:
        cases = [cases_clips(read_cases(training.folder, split)) for training in members]
        clips = cases[0][0]
        scores = [np.mean(own, axis=0) for own in zip(*(scores for _, scores in cases), strict=True)]
        runs.append(measure_run(members[0].name, clips, scores))
    return Row(name, runs)


def _chains(attempt: Attempt) -> list[list[dict[str, Any]]]:
    """For each seed, how the shown runs and all that they start from ended."""
    folders = [set[Path]().union(*(_with_sources(training.folder) for training in members)) for members in attempt.runs]
    return [[ended for folder in chain if (ended := read_finished(folder)) is not None] for chain in folders]


def _weights(attempt: Attempt) -> int:
    """The number of weights that order a clip, of all members together."""
    shapes = [model_shapes(*describe_model(training.folder / "best")) for training in attempt.runs[0]]
    return sum(shape.numel() for own in shapes for shape in own.values())


def _with_sources(folder: Path) -> set[Path]:
    """The folders of a run and of all that it started from."""
    sources = [found for found in source_runs(folder).values() if found is not None]
    return {folder.resolve()}.union(*(_with_sources(source) for source in sources))
