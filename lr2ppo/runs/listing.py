"""List the runs: progress, best validation metric, and state."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten

from lr2ppo.errors import UserError
from lr2ppo.files import WEIGHTS_FILE
from lr2ppo.runs.lock import is_locked
from lr2ppo.runs.lookup import (
    CONFIG,
    CONVERTED_FROM,
    FINISHED,
    METRICS,
    PROGRESS,
    RESULTS,
    WEIGHTS,
    is_outdated,
    is_run,
    read_evaluated,
    read_finished,
    read_mapping,
    read_rows,
    read_run,
)
from lr2ppo.runs.records import Progress, check_record
from lr2ppo.runs.stages import STAGES
from lr2ppo.terminal import printable, say

# The modification times of these files show when a run was last active.
ACTIVITY_FILES = (CONFIG, METRICS, "train.log", PROGRESS, FINISHED, WEIGHTS)
HEADINGS = ("stage", "name", "progress", "", "best", "started", "active", "state")
LONGEST_FAULT = 80
UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
# Terminal codes: enter and leave the alternate screen, home, clear to the end of the line or screen.
ENTER, LEAVE, HOME, CLEAR_LINE, CLEAR_REST = (
    "\x1b[?1049h\x1b[?25l",
    "\x1b[?25h\x1b[?1049l",
    "\x1b[H",
    "\x1b[K",
    "\x1b[J",
)


@dataclass(frozen=True)
class RunStatus:
    """The status of a run, read from its folder; times are seconds since 1970, and None means unknown.

    `state` is running, stopped, finished, evaluated, converted (not trained here) or damaged, which `fault` explains.
    `evaluated` are the splits it was evaluated on, `outdated` those on which it was with other weights.
    `goes_on_from` is the step of a stopped run's newest checkpoint, which may be earlier than its last step.
    """

    stage: str
    name: str
    state: str
    preset: str | None = None
    step: int | None = None
    steps: int | None = None
    metric: str | None = None
    best: float | None = None
    best_step: int | None = None
    started: float | None = None
    active: float | None = None
    seconds_left: float | None = None
    goes_on_from: int | None = None
    evaluated: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()
    fault: str | None = None


def list_runs(logs: Path) -> list[RunStatus]:
    """Return all runs under `logs`, by stage, the newest first."""
    found = []
    for stage in STAGES:
        folders = {path for path in (logs / stage).glob("[!.]*") if path.is_dir()}
        # A run that is still checking its inputs has no folder yet.
        locks = (logs / stage).glob(".*.lock")
        folders |= {folder for folder in (path.with_name(path.name[1:-5]) for path in locks) if _is_starting(folder)}
        runs = [run for run in map(read_status, folders) if run is not None]
        found += sorted(
            sorted(runs, key=lambda run: run.name), key=lambda run: run.started or time.time(), reverse=True
        )
    return found


def _is_starting(folder: Path) -> bool:
    try:
        return is_locked(folder)
    except OSError:
        # Something else has the name of a lock.
        return False


def read_status(folder: Path) -> RunStatus | None:
    """Read the status of a run; None if its folder is empty or was just removed."""
    status = RunStatus(stage=folder.parent.name, name=folder.name, state="running")
    try:
        times = [path.stat().st_mtime for path in (folder / name for name in ACTIVITY_FILES) if path.exists()]
        if times:
            status = replace(status, started=min(times), active=max(times))
        if is_locked(folder) and not is_run(folder):
            return status
        if not any(not path.name.startswith(".") for path in folder.iterdir()):
            return None
        return _read(folder, status)
    except (OSError, ValueError, LookupError, TypeError, UserError) as error:
        fault = f"a file lacks {error}" if isinstance(error, LookupError) else " ".join(str(error).split())
        return replace(status, state="damaged", fault=fault) if folder.exists() else None


def _read(folder: Path, status: RunStatus) -> RunStatus:
    """Add progress and best metric to a status; raise if a file is missing or cannot be read."""
    config, progress, finished = read_run(folder), read_mapping(folder / PROGRESS), read_finished(folder)
    check_record(Progress, progress, PROGRESS)
    rows = read_rows(folder)
    metric = STAGES[status.stage].selects
    best = max(rows, key=lambda row: row[f"validation/{metric}"], default=None)
    if best is not None:
        status = replace(status, metric=metric, best=best[f"validation/{metric}"], best_step=best["step"])
    status = replace(status, preset=config.get("preset"))
    if finished is not None:
        evaluated, outdated = _read_evaluated(folder)
        status = replace(status, evaluated=evaluated, outdated=outdated)
        if CONVERTED_FROM in finished:
            return replace(status, state="converted")
        state = "evaluated" if evaluated else "finished"
        return replace(status, state=state, step=finished["steps"], steps=finished["steps"])
    step = progress["step"] if "step" in progress else rows[-1]["step"] if rows else 0
    status = replace(status, step=step, steps=progress.get("steps"))
    if is_locked(folder):
        return replace(status, seconds_left=progress.get("seconds_left"))
    kept = sorted(path.name for path in (folder / "checkpoints").glob("step-*"))
    goes_on_from = int(kept[-1].split("-")[1]) if kept else 0
    # A killed run may be further than its last progress file.
    return replace(status, state="stopped", step=max(step, goes_on_from), goes_on_from=goes_on_from)


def _read_evaluated(folder: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the splits that a run was evaluated on with the weights it has, and with others."""
    splits, weights = read_evaluated(folder), folder / "best" / WEIGHTS_FILE
    evaluated = {result.get("fingerprints", {}).get("weights") for result in splits.values()}
    # Reading the weights of many runs takes long; weights that are here for longer than an evaluation of all splits are
    # those of it.
    if len(evaluated) == 1 and _is_older(weights, folder / RESULTS):
        return tuple(splits), ()
    outdated = tuple(split for split, result in splits.items() if is_outdated(folder, result))
    return tuple(split for split in splits if split not in outdated), outdated


def _is_older(first: Path, second: Path) -> bool:
    # The system sets `st_ctime_ns`, and no program can choose it.
    return first.exists() and first.stat().st_ctime_ns <= second.stat().st_ctime_ns


def format_runs(runs: Sequence[RunStatus], now: float) -> list[str]:
    """Format an aligned table: a line of headings, then one line per run."""
    table = [HEADINGS, *(_cells(run, now) for run in runs)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = {HEADINGS.index(name) for name in ("progress", "", "started", "active")}
    return [
        "  ".join(
            f"{cell:>{width}}" if place in right else f"{cell:<{width}}"
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _cells(run: RunStatus, now: float) -> tuple[str, ...]:
    steps = "-" if run.step is None else f"{run.step}/{run.steps or '?'}"
    percent = f"{100 * run.step // run.steps} %" if run.step is not None and run.steps else ""
    best = "-" if run.best is None else f"{run.metric} {run.best:.4f} at {run.best_step}"
    return (
        run.stage,
        run.name,
        steps,
        percent,
        best,
        *(_age(at, now) for at in (run.started, run.active)),
        _state(run),
    )


def _state(run: RunStatus) -> str:
    if run.fault is not None:
        return f"damaged: {shorten(run.fault, LONGEST_FAULT, placeholder=' ..')}"
    if run.goes_on_from is not None and run.goes_on_from != run.step:
        return f"stopped, resumes from {run.goes_on_from}"
    if run.seconds_left is not None:
        return f"running, {_age(0, run.seconds_left)} left"
    outdated = f"; with other weights: {', '.join(run.outdated)}" if run.outdated else ""
    return f"{run.state}{': ' * bool(run.evaluated)}{', '.join(run.evaluated)}{outdated}"


def _age(at: float | None, now: float) -> str:
    """Format the time from `at` to `now` in the largest unit that fits."""
    if at is None:
        return "-"
    seconds = max(0, round(now - at))
    size, unit = next((pair for pair in UNITS if seconds >= pair[0]), UNITS[-1])
    return f"{seconds // size} {unit}"


def watch(logs: Path, seconds: float) -> None:
    """Print the table every few seconds, in place on a terminal, until Ctrl-C."""
    in_place = sys.stdout.isatty()
    lines: list[str] = []
    try:
        sys.stdout.write(ENTER * in_place)
        while True:
            lines = describe(logs)
            shown = [*lines, "", f"{time.strftime('%H:%M:%S')}, every {seconds:g} s; Ctrl-C quits"]
            sys.stdout.write(_screen(shown) if in_place else "\n".join(shown) + "\n\n")
            sys.stdout.flush()
            time.sleep(seconds)
    except KeyboardInterrupt:
        pass
    finally:
        sys.stdout.write(LEAVE * in_place)
    if in_place:
        say("\n".join(lines))


def _screen(lines: Sequence[str]) -> str:
    """Fit lines to the terminal: cut long lines, and leave out lines that do not fit."""
    columns, rows = os.get_terminal_size()
    if rows and len(lines) > rows:
        left_out = len(lines) - rows + 1
        lines = [*lines[: rows - 3], f"and {left_out} more", *lines[-2:]]
    shown = (line[: columns or None] + CLEAR_LINE for line in lines)
    return HOME + "\r\n".join(shown) + CLEAR_REST


def describe(logs: Path) -> list[str]:
    """Return the table's lines for a terminal, or how to start a run if there is none."""
    runs = list_runs(logs)
    lines = format_runs(runs, time.time()) if runs else [f"no runs under {logs}; start one with: sh pointwise.sh NAME"]
    return [printable(line) for line in lines]
