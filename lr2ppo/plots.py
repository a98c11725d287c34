"""Pictures of runs: NDCG by stage with intervals, and training curves."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lr2ppo.comparison import TITLES
from lr2ppo.engine.earlier import COMMANDS, find_run, read_run
from lr2ppo.errors import UserError, reports_user_errors

STAGE_TITLES = {"pointwise": "stage 1: ranker", "reward": "stage 2: reward model", "ppo": "stage 3: LR2PPO"}
COLOURS = {"pointwise": "#7a8ca3", "reward": "#c98a2d", "ppo": "#2a6f97"}
BAR_METRICS = ("ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "ndcg")

Curve = tuple[list[float], list[float]]


def plot_results(runs: Sequence[Path], split: str) -> Figure:
    """Bars of each run's NDCG with its 95 % interval, from its `results.json`."""
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    width = 0.8 / len(runs)
    for number, run in enumerate(runs):
        results = read_results(run, split)
        means = [results[metric]["mean"] for metric in BAR_METRICS]
        below = [results[metric]["mean"] - results[metric]["low"] for metric in BAR_METRICS]
        above = [results[metric]["high"] - results[metric]["mean"] for metric in BAR_METRICS]
        places = [place + (number - (len(runs) - 1) / 2) * width for place in range(len(BAR_METRICS))]
        stage = run.parent.name
        bars = axes.bar(
            places, means, width * 0.94, yerr=[below, above], capsize=2, color=COLOURS.get(stage), ecolor="#333333",
            label=f"{STAGE_TITLES.get(stage, stage)} ({run.name})",
        )  # fmt: skip
        axes.bar_label(bars, fmt="{:.2f}", label_type="center", color="white", fontsize=8)
    chance = [read_results(runs[0], split)["chance"][metric] for metric in BAR_METRICS]
    axes.hlines(
        chance, [p - 0.42 for p in range(5)], [p + 0.42 for p in range(5)], colors="#222222", linestyles="dotted"
    )
    axes.annotate("chance", (0.43, chance[0]), fontsize=8, va="center")
    axes.set_xticks(range(len(BAR_METRICS)), [TITLES[metric] for metric in BAR_METRICS])
    axes.set_ylim(0, 1)
    axes.set_ylabel(f"mean over {split} clips, 95 % interval")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(runs), frameon=False)
    _tidy(axes)
    return figure


def plot_training(runs: Sequence[Path]) -> Figure:
    """A row a run: its losses, its validation metric and its learning rate or, of stage 3, reward and value."""
    figure, rows = plt.subplots(len(runs), 3, figsize=(11, 2.9 * len(runs)), layout="constrained", squeeze=False)
    for row, run in zip(rows, runs, strict=True):
        curves = read_curves(run)
        stage = run.parent.name
        panels = {
            "pointwise": (("train/loss",), ("validation/ndcg", "validation/ndcg@1"), ("train/learning_rate",)),
            "reward": (("train/loss",), ("validation/pair_accuracy", "train/accuracy"), ("train/learning_rate",)),
            "ppo": (("train/policy_loss",), ("validation/ndcg", "validation/ndcg@1"), ("train/reward", "train/value")),
        }[stage]
        for axes, names in zip(row, panels, strict=True):
            for name in names:
                if name in curves:
                    axes.plot(*curves[name], label=name.replace("/", " "), marker="o", markersize=2.5, linewidth=1.4)
            axes.set_xlabel("update" if stage == "ppo" else "step")
            axes.legend(frameon=False, fontsize=8)
            _tidy(axes)
        row[0].set_title(f"{STAGE_TITLES[stage]} ({run.name})", loc="left", fontsize=10)
    return figure


def read_results(run: Path, split: str) -> Mapping[str, Mapping[str, float]]:
    path = run / "results.json"
    results = json.loads(path.read_text(encoding="utf-8")).get(split) if path.exists() else None
    if results is None:
        raise UserError(f"{run}: has not been evaluated on {split}; run: sh ppo_eval.sh {run.parent.name}/{run.name}")
    found: Mapping[str, Mapping[str, float]] = results
    return found


def read_curves(run: Path) -> dict[str, Curve]:
    """Each scalar's steps and values, from the run's `metrics.jsonl`."""
    curves: dict[str, Curve] = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        for name, value in row.items():
            if "/" in name:
                steps, values = curves.setdefault(name, ([], []))
                steps.append(row["step"])
                values.append(value)
    return curves


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)


@reports_user_errors
def main() -> None:
    parser = argparse.ArgumentParser(
        description="Draw runs: NDCG by stage (OUT/results.png) and training curves (OUT/training.png).",
        epilog="example: python -m lr2ppo.plots pointwise/demo reward/demo ppo/demo --out logs",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="evaluated runs, as STAGE/NAME, NAME or a path")
    parser.add_argument("--out", type=Path, default=Path("logs"), help="folder for the pictures (default logs)")
    parser.add_argument("--logs", type=Path, default=Path("logs"), help="folder of the runs (default logs)")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    arguments = parser.parse_args()
    runs = [find_run(run, tuple(COMMANDS), arguments.logs) for run in arguments.runs]
    mpl.use("agg")
    arguments.out.mkdir(parents=True, exist_ok=True)
    # A reward model orders labels too, but it is no ranker: the bars compare rankers.
    rankers = [run for run in runs if read_run(run)["stage"] != "reward"]
    figures = {"training.png": plot_training(runs)} | (
        {"results.png": plot_results(rankers, arguments.split)} if rankers else {}
    )
    for name, figure in figures.items():
        figure.savefig(arguments.out / name, dpi=130)
        print(f"written: {arguments.out / name}")


if __name__ == "__main__":
    main()
