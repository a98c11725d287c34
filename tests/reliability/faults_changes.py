"""Changes around a run: it is paused, the clock jumps, and it resumes with other code, settings or processes."""

import errno
import os
import shutil
import signal
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.reliability.faults_disk import NOT_POSSIBLE
from tests.reliability.faults_kills import OFTEN, Series, Tried
from tests.reliability.faults_world import TRACEBACK, Ended, Job, Outcome, Workshop, difference, fault_of_refusal, rows

PAUSE_SECONDS = 4
# Python runs a module of this name at its start. Each clock reading is a month early or late.
JUMPING_CLOCK = """
import time
real, monotonic = time.time, time.monotonic
time.time = lambda: real() + (2_600_000 if int(monotonic()) % 2 else -2_600_000)
"""
NO_LOCKS = f"""
import fcntl
def refuse(*_):
    raise OSError({errno.ENOLCK}, "No locks available")
fcntl.lockf = refuse
"""
# Rights by which root may write what is read-only.
RIGHTS = "-dac_override,-dac_read_search,-fowner"


def try_changes(workshop: Workshop) -> Tried:
    """Try what changes around a run."""
    for processes in (1, 2):
        yield from _paused(Series(workshop, "pointwise", processes))
    for processes in (1, 2):
        yield "a clock that jumps by months", _jumping(Series(workshop, "pointwise", processes))
    yield "a disk without locks", _without_locks(workshop)
    yield "resumed with another preset", _other_preset(workshop)
    yield "resumed with another version of the code", _other_version(workshop)
    yield "2 processes, then 1, then 2", _other_processes(workshop)
    yield "a user who may write nothing but logs", _without_rights(workshop)


def _paused(series: Series) -> Tried:
    """Stop and continue one of the processes, as a shell's Ctrl-Z or a full machine does."""
    chosen: dict[str, Callable[[Job], int]] = {"a training process": lambda job: job.training()[-1]}
    if series.processes > 1:
        chosen["the launcher"] = lambda job: job.script.pid
    for number, (what, choose) in enumerate(chosen.items()):
        whole, name = series.make_whole(), f"paused-{series.processes}-{number}"
        job = series.start(name, OFTEN)
        series.wait_for_checkpoints(job, name)
        pid = choose(job)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(PAUSE_SECONDS)
        os.kill(pid, signal.SIGCONT)
        ended = job.end()
        yield f"SIGSTOP and SIGCONT of {what}", _same(ended, whole, series.folder(name))


def _jumping(series: Series) -> Outcome:
    whole, name = series.make_whole(), f"jumping-{series.processes}"
    clock = _startup(series.workshop, "clock", JUMPING_CLOCK)
    stopped = series.start(name, OFTEN, environment={"PYTHONPATH": clock})
    series.wait_for_checkpoints(stopped, name, number=2)
    os.kill(stopped.script.pid, signal.SIGTERM)
    stopped.end()
    ended = series.start(name, environment={"PYTHONPATH": clock}).end()
    outcome = _same(ended, whole, series.folder(name), "resuming from")
    listed = series.workshop.launch(["sh", "-c", '"$PYTHON" -m lr2ppo runs'], PYTHONPATH=clock).end()
    line = next((line for line in listed.printed.splitlines() if name in line), "")
    if not outcome.why and "finished" not in line:
        return Outcome("lost", ended.seconds, f"was listed as {line!r}; it printed: {listed.printed[-600:]}")
    return outcome


def _without_locks(workshop: Workshop) -> Outcome:
    place = _startup(workshop, "locks", NO_LOCKS)
    ended = Series(workshop, "pointwise", 1).start("unlocked", environment={"PYTHONPATH": place}).end()
    why = fault_of_refusal(ended, "cannot be locked: No locks available")
    return Outcome("lost" if why else "refused", ended.seconds, why)


def _other_preset(workshop: Workshop) -> Outcome:
    series = Series(workshop, "pointwise", 1)
    series.stop("preset")
    shutil.copytree(workshop.root / "configs" / "mini", workshop.root / "configs" / "other")
    ended = series.start("preset", environment={"PRESET": "other"}).end()
    why = fault_of_refusal(ended, "preset: found 'other', the run started with 'mini'")
    return Outcome("lost" if why else "refused", ended.seconds, why)


def _other_version(workshop: Workshop) -> Outcome:
    series = Series(workshop, "pointwise", 1)
    whole = series.make_whole()
    series.stop("version")
    path = workshop.root / "lr2ppo" / "version.py"
    before = path.read_text(encoding="utf-8")
    path.write_text(before.replace('__version__ = "', '__version__ = "9.'), encoding="utf-8")
    ended = series.start("version").end()
    path.write_text(before, encoding="utf-8")
    return _same(ended, whole, series.folder("version"), "resuming from")


def _other_processes(workshop: Workshop) -> Outcome:
    """Sums round differently, so only the steps of the rows are compared."""
    two, one = Series(workshop, "pointwise", 2), Series(workshop, "pointwise", 1)
    whole, seconds = two.make_whole(), 0.0
    for series in (two, one):
        before, job = series.newest("processes"), series.start("processes", OFTEN)
        job.wait_for(partial(_has_newer, series, before), 120)
        os.kill(job.script.pid, signal.SIGTERM)
        ended = job.end()
        if ended.code != 128 + signal.SIGTERM:
            return Outcome("lost", ended.seconds, f"ended with {ended.code}; it printed: {ended.printed[-600:]}")
        seconds = max(seconds, ended.seconds)
    ended = two.start("processes").end()
    steps = [[row["step"] for row in rows(folder)] for folder in (whole, two.folder("processes"))]
    fine = ended.code == 0 and "resuming from" in ended.printed and steps[0] == steps[1]
    why = "" if fine else f"ended with {ended.code}, other steps in its rows; it printed: {ended.printed[-600:]}"
    return Outcome("continued" if fine else "lost", max(seconds, ended.seconds), why)


def _has_newer(series: Series, before: str) -> bool:
    return series.newest("processes") > before


def _without_rights(workshop: Workshop) -> Outcome:
    """Train with code and data that are read-only, without root's right to write them nevertheless."""
    drop = ["setpriv", f"--bounding-set={RIGHTS}", f"--inh-caps={RIGHTS}"] if os.geteuid() == 0 else []
    series = Series(workshop, "pointwise", 1)
    whole = series.make_whole()
    readable = [path for folder in ("lr2ppo", "configs", "data") for path in [*(workshop.root / folder).rglob("*")]]
    readable += [workshop.root / folder for folder in ("lr2ppo", "configs", "data")] + [workshop.root]
    try:
        for path in readable:
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
        if shutil.which("setpriv") is None or not _is_refused(workshop, drop):
            return NOT_POSSIBLE
        ended = series.start("rights", before=drop).end()
    finally:
        for path in reversed(readable):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)
    return _same(ended, whole, series.folder("rights"))


def _is_refused(workshop: Workshop, drop: list[str]) -> bool:
    return workshop.launch([*drop, "touch", str(workshop.root / "lr2ppo" / "written")]).end().code != 0


def _startup(workshop: Workshop, name: str, text: str) -> str:
    """Write a module that Python runs at its start; return its folder, for PYTHONPATH."""
    folder = workshop.root / "startup" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    return str(folder)


def _same(ended: Ended, whole: Path, folder: Path, message: str = "") -> Outcome:
    why = "a traceback reached the screen" if TRACEBACK in ended.printed else difference(whole, folder)
    if not why and message not in ended.printed:
        why = f"did not print {message!r}"
    return Outcome("lost" if why else "continued", ended.seconds, why and f"{why}; it printed: {ended.printed[-600:]}")
