"""Test every promise of docs/reliability.md: killed runs, full disks, bad input, and an abused page.

Prints each result at once, and a table at the end; exits with 1 if something was lost.
"""

import argparse
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.reliability.faults_changes import try_changes
from tests.reliability.faults_commands import try_commands
from tests.reliability.faults_disk import try_disks
from tests.reliability.faults_inputs import try_inputs, try_mistakes, try_nonfinite
from tests.reliability.faults_kills import Tried, try_damage, try_kills, try_one_name, try_restarts, try_second_signal
from tests.reliability.faults_page import try_page
from tests.reliability.faults_world import Outcome, Result, Workshop

RESULTS: tuple[Result, ...] = ("continued", "refused", "lost")


def make_table(found: dict[str, list[Outcome]]) -> str:
    """Format one row per kind of trial: how often it was tried, the results, and the longest duration."""
    width = max(map(len, found))
    lines = [f"{'tried':{width}}  {'times':>5}{''.join(f'{result:>11}' for result in RESULTS)}{'longest':>10}"]
    for what, outcomes in found.items():
        results = [outcome.result for outcome in outcomes]
        if "not possible here" in results:
            lines.append(f"{what:{width}}  not possible here")
            continue
        counts = "".join(f"{results.count(result) or '-':>11}" for result in RESULTS)
        longest = max(outcome.seconds for outcome in outcomes)
        lines.append(f"{what:{width}}  {len(results):>5}{counts}{f'{longest:.1f} s' if longest else '-':>10}")
    return "\n".join(lines)


def _guarded(name: str, trials: Tried) -> Tried:
    """Run the trials of a group; a trial that raises counts as lost, and the others still run."""
    try:
        yield from trials
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        traceback.print_exc()
        yield f"the trials called {name}", Outcome("lost", why=f"failed: {error!r}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="example: sh scripts/faults.sh --only disks")
    parser.add_argument("--kills", type=int, default=30, help="how many random kills and signals (default 30)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the moments and kinds (default 7)")
    parser.add_argument("--only", action="append", help="only this group of trials; may be given several times")
    arguments = parser.parse_args()
    groups: dict[str, Callable[[Workshop], Tried]] = {
        "inputs": try_inputs,
        "nonfinite": try_nonfinite,
        "mistakes": try_mistakes,
        "page": try_page,
        "disks": try_disks,
        "damage": try_damage,
        "one-name": try_one_name,
        "second-signal": try_second_signal,
        "restarts": try_restarts,
        "changes": try_changes,
        "commands": partial(try_commands, seed=arguments.seed),
        "kills": partial(try_kills, kills=arguments.kills, seed=arguments.seed),
    }
    chosen = arguments.only or list(groups)
    if unknown := set(chosen) - set(groups):
        parser.error(f"--only: found {', '.join(unknown)}, wanted one of {', '.join(groups)}")
    found: dict[str, list[Outcome]] = {}
    started = time.monotonic()
    # Background jobs of a shell ignore it, and so would all processes they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="lr2ppo-faults-") as folder:
        workshop = Workshop(Path(folder))
        for name in chosen:
            for what, outcome in _guarded(name, groups[name](workshop)):
                found.setdefault(what, []).append(outcome)
                print(f"{time.monotonic() - started:6.0f} s  {what}: {outcome.result}  {outcome.why}", flush=True)
    print(f"\n{make_table(found)}")
    if any(outcome.result == "lost" for outcomes in found.values() for outcome in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
