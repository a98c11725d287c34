"""The report as one self-contained HTML page; all text is escaped."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from lr2ppo.evaluation.comparison import (
    METRIC_TITLES,
    SEED,
    Comparison,
    Contrast,
    Row,
    are_comparable,
    clip_differences,
    compare,
    describe_best,
    describe_intervals,
    describe_size,
    estimate_difference,
    shown_metrics,
)
from lr2ppo.evaluation.metrics import Estimate
from lr2ppo.evaluation.published import PUBLISHED, published_best
from lr2ppo.evaluation.results import chance_means
from lr2ppo.evaluation.table import MOST_LISTED_ROWS, show_p, show_probability
from lr2ppo.files import write_text
from lr2ppo.report import figures
from lr2ppo.report.cases import describe_grades, frames_root, page_clips
from lr2ppo.report.load import ReportedRow, ReportedRun, SplitResults, gather_rows, preset_differences
from lr2ppo.runs.lookup import CONVERTED_FROM, best_validation, read_settings, source_runs
from lr2ppo.runs.stages import STAGES
from lr2ppo.version import __version__


@dataclass(frozen=True)
class Compared:
    """Rows that were evaluated on the same clips, in stage order, each one's first evaluation, and their comparison."""

    reported: Sequence[ReportedRow]
    evaluations: Sequence[SplitResults]
    comparison: Comparison

    @property
    def pair(self) -> tuple[int, int] | None:
        """The positions of the first stage 1 row and of the row compared with it; None if there are not both."""
        before = next((place for place, row in enumerate(self.reported) if not STAGES[row.stage].sources), None)
        return None if before is None or before == self.after else (before, self.after)

    @property
    def after(self) -> int:
        """The position of the row whose orders are shown: the last ranker in stage order, else the last row."""
        rankers = [place for place, row in enumerate(self.reported) if STAGES[row.stage].model == "RelevanceRanker"]
        return rankers[-1] if rankers else len(self.reported) - 1


def write_report(groups: Sequence[Sequence[Path]], split: str, out: Path, frames: Path | None = None) -> Path:
    """Write the report of runs, given as the folders of each row's runs.

    `frames` is the folder of the clips' images, by default the data folder. Raises `UserError` if a run's folder is
    damaged, the runs of a row cannot be compared, or the page cannot be written.
    """
    text = render_report(gather_rows(groups, split), split, frames)
    write_text(out, text)
    return out


def render_report(rows: Sequence[ReportedRow], split: str, frames: Path | None = None) -> str:
    """Return the page's HTML."""
    compared = compare_rows(rows)
    runs = sorted((run for row in rows for run in row.runs), key=lambda run: list(STAGES).index(run.stage))
    stages = [(STAGES[stage], list(own)) for stage, own in groupby(runs, key=lambda run: run.stage)]
    return open_template("page.html").render(
        title=f"lr2ppo: {rows[-1].name}",
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        split=split,
        rows=rows,
        results=None if compared is None else results_section(compared),
        not_compared=[explain_left_out(row) for row in rows if compared is None or row not in compared.reported],
        published=published_section(runs),
        training=[(stage.title, figures.draw_training(stage, own), _best_steps(own)) for stage, own in stages],
        reward=reward_section(runs),
        reliability=reliability_section(runs),
        cases=None if compared is None else cases_section(compared, frames),
        facts=[run_facts(run) for run in runs],
    )


def open_template(name: str) -> Template:
    """Open a page's template, in which all text is escaped."""
    environment = Environment(
        loader=PackageLoader("lr2ppo.report", "template"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"value": _value, "interval": _interval, "probability": show_probability, "p": show_p}
    return environment.get_template(name)


def compare_rows(rows: Sequence[ReportedRow]) -> Compared | None:
    """Compare the evaluated rows that can be compared with the last of them; None if none was evaluated."""
    evaluated = [
        (reported, evaluation, row)
        for reported in rows
        if (row := reported.measure()) is not None and (evaluation := reported.runs[0].evaluation) is not None
    ]
    if not evaluated:
        return None
    last = evaluated[-1][2]
    same, evaluations, measured = zip(*(each for each in evaluated if are_comparable(each[2], last)), strict=True)
    return Compared(same, evaluations, compare(measured))


def explain_left_out(row: ReportedRow) -> str:
    """Say why a row is not in the table of results."""
    faults = [f"{run.name} {run.fault}" for run in row.runs if run.fault is not None]
    return ", ".join(faults) or f"{row.name} was evaluated on other clips"


def results_section(compared: Compared) -> dict[str, Any]:
    """Return the results section: a headline, the table with intervals, differences of every pair and two figures."""
    comparison, stages, pair = compared.comparison, [row.stage for row in compared.reported], compared.pair
    rows, metrics = comparison.rows, shown_metrics(comparison.rows)
    chance = chance_means(rows[0])
    return {
        "size": describe_size(rows),
        "intervals": describe_intervals(rows),
        "notes": [note for row in compared.reported for note in row.notes],
        "titles": [METRIC_TITLES[name] for name in metrics],
        "chance": [chance[name] for name in metrics],
        "rows": [
            (row.name, [estimates[name] for name in metrics])
            for row, estimates in zip(rows, comparison.estimates, strict=True)
        ],
        "differences": [
            (f"{each.first.name} minus {each.second.name}", differences(comparison, each, metrics))
            for each in comparison.of_best()
        ],
        "contrasts": comparison.contrasts,
        "folded": len(rows) > MOST_LISTED_ROWS,
        "headline": describe_best(comparison),
        "picture": figures.draw_results(comparison, stages, chance),
        "has_dots": any(len(row.runs) > 1 for row in rows),
        "gains": None if pair is None else gain_summary(rows[pair[0]], rows[pair[1]]),
    }


def differences(comparison: Comparison, contrast: Contrast, metrics: Sequence[str]) -> list[Estimate]:
    """Return the difference of a pair of rows in each metric."""
    settings = comparison.samples, comparison.seed
    return [estimate_difference(contrast.first, contrast.second, name, *settings).estimate for name in metrics]


def gain_summary(before: Row, after: Row) -> dict[str, Any]:
    """Return how many clips gained and how many lost, with a histogram."""
    gains = clip_differences(after, before)
    return {
        "picture": figures.draw_gains(gains, (before.name, after.name)),
        "better": int((gains > 1e-9).sum()),
        "worse": int((gains < -1e-9).sum()),
    }


def published_section(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Return finished runs of the published settings beside the published validation figures."""
    parts = []
    for run in runs:
        if not run.preset.startswith("lrmovienet") or run.finished is None or run.stage not in PUBLISHED:
            continue
        published, ours = PUBLISHED[run.stage], best_validation(run.folder)
        if not ours:
            continue
        best = published_best(published)
        parts.append(
            {
                "name": run.name,
                "title": STAGES[run.stage].title,
                "titles": [METRIC_TITLES[name] for name in published.metrics],
                "published": [best[name] for name in published.metrics],
                "ours": [ours[name] for name in published.metrics],
                "differences": [ours[name] - best[name] for name in published.metrics],
                "minutes": published.minutes,
                "seconds": run.finished["seconds"],
            }
        )
    return parts


def reward_section(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """Return the reward model section: reward against NDCG in stage 3, accuracy by grade gap, and calibration."""
    paths = [
        (run.name, figures.draw_reward_against_ndcg(run))
        for run in runs
        if {"train/reward", "validation/ndcg"} <= run.curves.keys()
    ]
    moved = [run for run in runs if {"train/reward", "train/kl_to_start", "validation/ndcg"} <= run.curves.keys()]
    judged = [
        (run.name, run.evaluation.results["judgement"])
        for run in runs
        if run.evaluation is not None and "judgement" in run.evaluation.results
    ]
    return {
        "paths": paths,
        "distance": figures.draw_distance_from_start(moved) if moved else None,
        "pairs": _reward_pairs(moved) if len(moved) > 1 else [],
        "judged": [
            {
                "name": name,
                "temperature": judgement["temperature"],
                "by_gap": figures.draw_accuracy_by_gap(judgement["by_gap"]),
                "calibration": figures.draw_calibration(judgement["calibration"]),
            }
            for name, judgement in judged
        ],
    }


def _reward_pairs(runs: Sequence[ReportedRun]) -> list[tuple[str, str]]:
    """Each run's name with the file of its reward model's pairs, in which runs that are compared often differ."""
    sources = [(run.name, source_runs(run.folder).get("reward")) for run in runs]
    return [
        (name, Path(str(read_settings(reward)["data.train"])).name) for name, reward in sources if reward is not None
    ]


def reliability_section(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """Return each ranker's reliability diagram with its figures; runs evaluated by earlier versions have none."""
    found = [
        (run, run.evaluation.results["reliability"])
        for run in runs
        if run.evaluation is not None and run.evaluation.results.get("reliability") is not None
    ]
    return [
        {
            "name": run.name,
            "picture": figures.draw_reliability(reliability["bins"], run.stage),
            "error": reliability["calibration_error"],
            "brier": reliability["brier"],
            "constant": reliability["relevant"] * (1 - reliability["relevant"]),
        }
        for run, reliability in found
    ]


def cases_section(compared: Compared, frames: Path | None) -> dict[str, Any]:
    """Return the clips whose order changed most, and all others for the search; of rows of several runs, the first."""
    pair, last = compared.pair, compared.reported[compared.after].runs[0]
    before = None if pair is None else compared.evaluations[pair[0]]
    after = compared.evaluations[compared.after]
    data = page_clips(before, after, frames or frames_root(last), SEED)
    names = {"before": "by grade" if pair is None else compared.reported[pair[0]].runs[0].name, "after": last.name}
    return {
        "data": data | {"names": names},
        **names,
        "compared": pair is not None,
        "left_out": data["left_out"],
        "grades": describe_grades(after.clips),
    }


def run_facts(run: ReportedRun) -> dict[str, Any]:
    """Return a run's time, memory, machine, versions, data, and its config beside the preset's."""
    finished = run.finished or {}
    differences = preset_differences(run)
    machine = finished.get("machine")
    evaluation = run.evaluation
    is_trained = bool(finished) and CONVERTED_FROM not in finished
    facts = {
        "State": "finished" if is_trained else "converted" if finished else "in progress",
        "Converted from": finished.get(CONVERTED_FROM),
        "Steps": finished["steps"] if is_trained else None,
        "Best validation": None if finished.get("best_metric") is None
        else f"{finished['best_metric']:.4f} at {finished['best_step']}",
        "Time": _duration(finished["seconds"]) if is_trained else None,
        "Peak memory": f"{finished['peak_memory_gib']} GiB" if is_trained else None,
        "Machine": _machine(machine) if machine else None,
        "Commit": finished.get("commit"),
        "Versions": ", ".join(f"{name} {finished[name]}" for name in VERSIONS if name in finished) or None,
        "Data": run.config.get("data.root"),
        "Trained on": _fingerprints(run.inputs),
        "Evaluated on": None if evaluation is None
        else f"{evaluation.results['annotations']}, {evaluation.results['clips']} clips",
        "Evaluation data": None if evaluation is None else _fingerprints(evaluation.results.get("fingerprints", {})),
    }  # fmt: skip
    return {
        "name": run.name,
        "preset": run.preset,
        "facts": {name: value for name, value in facts.items() if value is not None},
        "config": [(key, value, key in differences, differences.get(key)) for key, value in run.config.items()],
        "changed": len(differences),
    }


VERSIONS = ("lr2ppo", "python", "torch", "transformers", "timm", "numpy")


def _best_steps(runs: Sequence[ReportedRun]) -> str:
    """Describe the step of each run's best weights."""
    return "; ".join(
        f"{run.name}: best weights from {STAGES[run.stage].step} {run.best_step}"
        for run in runs
        if run.best_step is not None and run.curves
    )


def _value(number: float, sign: bool = False) -> str:
    return f"{number:+.3f}" if sign else f"{number:.3f}"


def _interval(estimate: Estimate, sign: bool = False) -> str:
    return f"{_value(estimate.low, sign)} to {_value(estimate.high, sign)}"


def _fingerprints(found: Mapping[str, Any]) -> str | None:
    """List fingerprints, cut as commits are; None if there are none."""
    return ", ".join(f"{name} {str(value)[:12]}" for name, value in found.items()) or None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _machine(machine: Mapping[str, Any]) -> str:
    processes = "1 process" if machine["processes"] == 1 else f"{machine['processes']} processes"
    where = "" if machine["device"] == "CPU" else f"{machine['device']}, "
    return f"{where}{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, {processes}"
