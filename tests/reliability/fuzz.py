"""Feed broken files and requests to everything that reads them, for some minutes, and print what was found.

An input may be read, or refused with one message; a traceback, a crash, a hang or a lot of memory is a finding.
Failures of earlier runs are tried first. The smallest failing input of a finding is kept in a folder.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from tests.helpers.fuzz import OUTCOMES, Case
from tests.reliability.faults_world import REPOSITORY
from tests.reliability.fuzz_targets import TARGETS, Target

KEPT = REPOSITORY / ".hypothesis"
DATABASE, FINDINGS = KEPT / "fuzz", KEPT / "findings"
CASES_AT_ONCE = 40
TURN_SECONDS = 30.0
# Setting up valid files, and shrinking a failure, take longer than a turn.
SECONDS_TO_END = 240
# Above what the process has mapped at the start of a turn.
MOST_BYTES = 3 * 2**30


@dataclass
class Tally:
    """What one kind of case did in all turns so far; `finding` is the text of its failure."""

    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    finding: str = ""
    place: Path | None = None


class TooSlowError(Exception):
    """A case took longer than it may."""


def run_turn(target: Target, name: str, valid: Path, folder: Path, until: float, report: Path) -> None:
    """Run cases in this process until a time; write the numbers of outcomes, and the failure if there is one."""
    failure = ""
    try:
        if target.write_valid is not None and not any(valid.iterdir()):
            target.write_valid(valid)
        limit = _mapped_bytes() + MOST_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        OUTCOMES.clear()
        check = _make_check(target.cases[name], name, folder, valid, target.seconds)
        while time.monotonic() < until:
            check()
            _write_report(report, "")
    except KeyboardInterrupt:
        pass
    except BaseException:
        failure = traceback.format_exc()
    _write_report(report, failure)


def _make_check(case: Case, name: str, folder: Path, valid: Path, seconds: int) -> Callable[[], None]:
    def check(data: st.DataObject) -> None:
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        started = time.monotonic()
        signal.alarm(seconds)
        try:
            case(folder, valid, data)
        finally:
            signal.alarm(0)
        if time.monotonic() - started >= seconds:
            raise TooSlowError(f"took more than {seconds} s")

    def expire(*_: Any) -> None:
        raise TooSlowError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, expire)
    # The database finds earlier failures by the function's name.
    check.__name__ = check.__qualname__ = name.replace(" ", "_")
    checked: Callable[[], None] = settings(
        max_examples=CASES_AT_ONCE,
        database=DirectoryBasedExampleDatabase(DATABASE),
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
        report_multiple_bugs=False,
    )(given(data=st.data())(check))
    return checked


def _write_report(path: Path, failure: str) -> None:
    path.write_text(json.dumps({"outcomes": OUTCOMES, "failure": failure}), encoding="utf-8")


def _mapped_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    return pages * resource.getpagesize()


def take_turn(target: Target, name: str, place: Path, tally: Tally, seconds: float) -> None:
    """Run a turn in a child process, which a case may crash or hang, and add its numbers to the tally."""
    valid, folder, report = place.parent / "valid", place / "case", place / "report.json"
    for each in (valid, folder):
        each.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        # What commands print, such as the progress of runs.
        screen = os.open(place / "screen.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(screen, 1)
        os.dup2(screen, 2)
        run_turn(target, name, valid, folder, started + seconds, report)
        os._exit(0)
    try:
        status = _wait(child, seconds + SECONDS_TO_END)
    finally:
        tally.seconds += time.monotonic() - started
        nothing = {"outcomes": {}, "failure": ""}
        found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else nothing
        tally.outcomes.update(found["outcomes"])
    tally.finding = str(found["failure"])
    if os.WIFSIGNALED(status):
        tally.finding = f"the process was ended by signal {os.WTERMSIG(status)}: a crash or a hang"
    if tally.finding:
        tally.place = _keep(name, folder, tally.finding)


def _wait(child: int, seconds: float) -> int:
    """Wait for a child, killing it after some seconds; return its exit status."""
    until = time.monotonic() + seconds
    try:
        while time.monotonic() < until:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status
            time.sleep(0.05)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def _keep(name: str, folder: Path, finding: str) -> Path:
    place = FINDINGS / f"{name.replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    shutil.copytree(folder, place, symlinks=True)
    (place / "finding.txt").write_text(finding, encoding="utf-8")
    return place


def make_table(tallies: dict[str, Tally]) -> str:
    """Format one row per kind of case."""
    width = max(map(len, tallies))
    lines = [f"{'target':{width}}  {'cases':>8}{'seconds':>9}{'read':>8}{'refused':>9}{'findings':>10}"]
    for name, tally in tallies.items():
        read, refused = tally.outcomes["read"], tally.outcomes["refused"]
        finding = "1" if tally.finding else "-"
        lines.append(f"{name:{width}}  {read + refused:>8}{tally.seconds:>9.0f}{read:>8}{refused:>9}{finding:>10}")
    return "\n".join(lines)


def run_cycle(chosen: list[str], minutes: float, root: Path, tallies: dict[str, Tally]) -> None:
    """Give each kind of case turns until the minutes are over; a kind with a finding gets no more."""
    until = time.monotonic() + 60 * minutes
    kinds = [(target, case) for target in chosen for case in TARGETS[target].cases]
    while time.monotonic() < until and any(not tally.finding for tally in tallies.values()):
        for target, case in kinds:
            tally = tallies[case]
            # In a short run, everything gets a turn in the first half: some set up their valid files in it.
            seconds = min(TURN_SECONDS, 30 * minutes / len(kinds), until - time.monotonic())
            if tally.finding or seconds <= 0:
                continue
            take_turn(TARGETS[target], case, root / target / case.replace(" ", "-"), tally, seconds)
            state = f"FOUND, kept in {tally.place}" if tally.finding else f"{sum(tally.outcomes.values())} cases"
            print(f"{case}: {state}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: sh scripts/fuzz.sh --minutes 10")
    parser.add_argument("--minutes", type=float, default=10, help="how long (default 10)")
    parser.add_argument("--only", action="append", choices=tuple(TARGETS), help="only this target; may be repeated")
    arguments = parser.parse_args()
    chosen = arguments.only or list(TARGETS)
    tallies = {case: Tally() for target in chosen for case in TARGETS[target].cases}
    os.environ["NPROC"] = "1"
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="lr2ppo-fuzz-") as folder:
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        try:
            run_cycle(chosen, arguments.minutes, Path(folder), tallies)
        except KeyboardInterrupt:
            print("ended early", flush=True)
    print(f"\n{make_table(tallies)}")
    for name, tally in tallies.items():
        if tally.finding:
            print(f"\n{name}: {tally.place}\n{tally.finding[-3000:]}")
    if any(tally.finding for tally in tallies.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
