"""Disks that are full, read-only or gone."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.reliability.faults_kills import OFTEN, Series, Tried
from tests.reliability.faults_world import Ended, Outcome, Workshop, difference, fault_of_refusal

NOT_POSSIBLE = Outcome("not possible here")


@contextmanager
def small_disk(place: Path, options: str) -> Iterator[bool]:
    """Mount a memory disk at a folder; yields False if the system does not permit that."""
    place.mkdir(parents=True)
    mounted = _mount("-t", "tmpfs", "-o", options, "tmpfs", str(place))
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(place)], check=False)


def try_disks(workshop: Workshop) -> Tried:
    """Try logs and data on disks that cannot be written."""
    yield "disk too small for one checkpoint", _too_small(workshop)
    yield from _fills_up(workshop)
    yield from _read_only(workshop)
    yield "logs folder removed during the run", _vanishes(workshop)


def _too_small(workshop: Workshop) -> Outcome:
    logs = workshop.root / "small"
    with small_disk(logs, "size=2m") as mounted:
        if not mounted:
            return NOT_POSSIBLE
        ended = Series(workshop, "pointwise", 1).start("small", OFTEN, f"logs={logs}").end()
        why = fault_of_refusal(ended, "GiB free on its disk")
        rows = logs / "pointwise" / "small" / "metrics.jsonl"
        if not why and rows.exists() and rows.read_text(encoding="utf-8"):
            why = "steps were made before"
        return _refused(ended, why)


def _fills_up(workshop: Workshop) -> Tried:
    what = "disk that fills up during the run"
    logs = workshop.root / "filling"
    series = Series(workshop, "pointwise", 1)
    with small_disk(logs, "size=32m") as mounted:
        if not mounted:
            yield what, NOT_POSSIBLE
            return
        folder, ballast = logs / "pointwise" / "full", logs / "ballast"
        job = series.start("full", OFTEN, f"logs={logs}")
        series.wait_for_checkpoints(job, "full", number=2, logs=logs)
        _fill(ballast)
        ended = job.end()
        yield what, _refused(ended, fault_of_refusal(ended, "No space left on device"))
        ballast.unlink()
        ended = series.start("full", OFTEN, f"logs={logs}").end()
        why = difference(series.make_whole(), folder)
        if "resuming from" not in ended.printed:
            why = f"did not resume; {why}; it printed: {ended.printed[-600:]}"
        yield "the same command after room was made", Outcome("lost" if why else "continued", ended.seconds, why)


def _read_only(workshop: Workshop) -> Tried:
    what = "a run to go on with, on a disk now read-only", "data on a read-only disk"
    disk = workshop.root / "disk"
    series = Series(workshop, "pointwise", 1)
    with small_disk(disk, "size=32m") as mounted:
        if not mounted:
            yield from ((each, NOT_POSSIBLE) for each in what)
            return
        series.stop("kept", disk)
        shutil.copytree(workshop.data, disk / "data", ignore=shutil.ignore_patterns(".*"))
        _mount("-o", "remount,ro", str(disk))
        ended = series.start("kept", f"logs={disk}").end()
        yield what[0], _refused(ended, fault_of_refusal(ended, "Read-only file system"))
        yield what[1], series.finish("read-only-data", f"data.root={disk / 'data'}")


def _vanishes(workshop: Workshop) -> Outcome:
    logs = workshop.root / "vanishing"
    series = Series(workshop, "pointwise", 1)
    job = series.start("gone", OFTEN, f"logs={logs}")
    series.wait_for_checkpoints(job, "gone", logs=logs)
    logs.rename(workshop.root / "vanished")
    shutil.rmtree(workshop.root / "vanished")
    ended = job.end()
    return _refused(ended, fault_of_refusal(ended, "No such file or directory"))


def _refused(ended: Ended, why: str) -> Outcome:
    return Outcome("lost" if why else "refused", ended.seconds, why)


def _fill(ballast: Path) -> None:
    """Fill a disk."""
    try:
        with ballast.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError:
        return


def _mount(*arguments: str) -> bool:
    try:
        return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
