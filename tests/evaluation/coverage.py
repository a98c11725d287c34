"""How often 95 % intervals hold the true mean, on simulated runs: `.venv/bin/python -m tests.evaluation.coverage`.

A value is the sum of effects of the run, of the clip, of the clip under the row's method, and a rest, each normal with
its own standard deviation (SD). True means are 0.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lr2ppo.evaluation.comparison import ClipKey, Row, Run, estimate_difference

# About those of NDCG over whole lists on the mini benchmark.
CLIP_SD, METHOD_SD, REST_SD = 0.15, 0.05, 0.1
RUN_SDS = (0.0, 0.02, 0.05)


class Case(NamedTuple):
    """A row of `runs` runs, on the same clips or each on its own; for a difference minus a row of `others` runs."""

    runs: int
    others: int | None
    clips: int
    shares_clips: bool

    def __str__(self) -> str:
        runs = f"{self.runs}" if self.others is None else f"{self.runs} minus {self.others}"
        return f"{runs} runs, {self.clips} {'shared' if self.shares_clips else 'own'} clips"


CASES = [
    *(Case(runs, None, clips, True) for clips in (30, 300) for runs in (2, 3, 5)),
    *(Case(runs, None, 150, False) for runs in (2, 3, 5)),
    *(Case(3, others, 300, True) for others in (1, 3, 5)),
    Case(3, 3, 150, False),
]


def coverage(case: Case, run_sd: float, repetitions: int, seed: int = 0) -> tuple[float, float]:
    """The shares of 95 % intervals that hold the true mean: of ours, and with all clips counted as independent."""
    rng = np.random.default_rng(seed)
    held = np.array([_hold_the_truth(case, run_sd, rng) for _ in range(repetitions)])
    return float(held[:, 0].mean()), float(held[:, 1].mean())


def _hold_the_truth(case: Case, run_sd: float, rng: np.random.Generator) -> tuple[bool, bool]:
    runs, others = case.runs, case.runs if case.others is None else case.others
    of_clips = rng.normal(0, CLIP_SD, (1 if case.shares_clips else runs, case.clips))
    first, _ = _draw(runs, of_clips, run_sd, rng)
    if case.others is None:
        second, own = np.zeros_like(first), 0.0
    else:
        second, own = _draw(others, of_clips, run_sd, rng)
    # A row of one run is that run, not one of many.
    truth = -own if others == 1 else 0.0
    rows = [_as_row(values, case.shares_clips) for values in (first, second)]
    found = estimate_difference(rows[0], rows[1], "ndcg", 50, 0).estimate
    differences = (first - second).ravel() if runs == others else first.mean(0) - second.mean(0)
    reach = 1.96 * differences.std(ddof=1) / np.sqrt(len(differences))
    return found.low <= truth <= found.high, bool(abs(found.mean - truth) <= reach)


def _draw(
    runs: int, of_clips: NDArray[np.float64], run_sd: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], float]:
    """Values [runs, clips], and the effect of the first run."""
    of_runs = rng.normal(0, run_sd, (runs, 1))
    of_method = rng.normal(0, METHOD_SD, of_clips.shape)
    rest = rng.normal(0, REST_SD, (runs, of_clips.shape[1]))
    return of_runs + of_clips + of_method + rest, float(of_runs[0, 0])


def _as_row(values: NDArray[np.float64], shares_clips: bool) -> Row:
    runs, clips = values.shape
    keys = [_name_clips(0 if shares_clips else run, clips) for run in range(runs)]
    return Row("row", [Run("run", own, {"ndcg": row}) for own, row in zip(keys, values, strict=True)])


@cache
def _name_clips(world: int, clips: int) -> tuple[ClipKey, ...]:
    return tuple(ClipKey(f"{world}/{clip}", (), ()) for clip in range(clips))


def main(repetitions: int = 2000) -> None:
    width = max(len(str(case)) for case in CASES) + 2
    print(f"95 % intervals that hold the true mean, of {repetitions}; in brackets, with all clips as if independent\n")
    print(" " * width + "".join(f"{f'run SD {sd:g}':>16}" for sd in RUN_SDS))
    for case in CASES:
        found = [coverage(case, sd, repetitions) for sd in RUN_SDS]
        print(f"{case!s:<{width}}" + "".join(f"{f'{100 * ours:.0f} % ({100 * old:.0f} %)':>16}" for ours, old in found))


if __name__ == "__main__":
    main()
