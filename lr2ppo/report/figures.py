"""The report's figures, as SVG text with the page's CSS colours, so that they follow light and dark mode."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from lr2ppo.evaluation.comparison import METRIC_TITLES, Comparison
from lr2ppo.evaluation.published import PUBLISHED, published_curve
from lr2ppo.report.load import ReportedRun
from lr2ppo.runs.stages import STAGES, Stage

# Unique placeholder colours, each replaced by a CSS variable of the page.
INK, MUTED, GRID, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#050501", "#050502", "#050503", "#050504", "#050505", "#050506")
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", PAPER: "paper"} | {
    colour: f"series-{number}" for number, colour in enumerate(SERIES)
}
SHOWN_METRICS = ("ndcg@1", "ndcg@3", "ndcg@5", "ndcg@10", "ndcg")
STYLES = ("-", "--", ":")
MARKERS = ("o", "s", "^")
# A longer legend would cover points.
MOST_NAMED_INSIDE = 4
SMALL, WIDE = (3.3, 2.3), (5.6, 3.2)
SETTINGS: Any = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    # A name with dollar signs is no formula, and no LaTeX starts because a matplotlibrc of the current folder says so.
    "text.parse_math": False,
    "text.usetex": False,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.formatter.limits": (-3, 4),
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
}


def draw(plot: Callable[[Axes], None], title: str, size: tuple[float, float] = SMALL) -> str:
    """Draw a figure with one pair of axes as SVG to embed in a page; its title has to be unique."""
    with mpl.rc_context(SETTINGS | {"svg.hashsalt": title}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        plot(axes)
        axes.set_title(title)
        stream = io.StringIO()
        # A character missing from the font is drawn as a box, which is enough.
        with warnings.catch_warnings(action="ignore"):
            figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg


def draw_results(comparison: Comparison, stages: Sequence[str], chance: Mapping[str, float]) -> str:
    """Draw NDCG at each cut-off of each row with its 95 % interval, between chance and the perfect order.

    Each run of a row of several is a small dot beside the row's.
    """
    rows = comparison.rows

    def plot(axes: Axes) -> None:
        places = np.arange(len(SHOWN_METRICS))
        step = min(0.16, 0.7 / len(rows))
        colours = series_colours(stages)
        for number, (row, colour) in enumerate(zip(rows, colours, strict=True)):
            # Rows of the same colour differ in their marker.
            marker = MARKERS[colours[:number].count(colour) % len(MARKERS)]
            estimates = [comparison.estimates[number][metric] for metric in SHOWN_METRICS]
            means = np.array([estimate.mean for estimate in estimates])
            below = means - [estimate.low for estimate in estimates]
            above = np.array([estimate.high for estimate in estimates]) - means
            at = places + (number - (len(rows) - 1) / 2) * step
            axes.errorbar(at, means, [below, above], fmt=marker, markersize=4.5, color=colour, label=row.name)
            if len(row.runs) > 1:
                own = np.array([row.run_means(metric) for metric in SHOWN_METRICS])
                axes.plot(at + 0.3 * step, own, marker, markersize=2.5, color=colour, alpha=0.7, markeredgewidth=0)
        expected = [chance[name] for name in SHOWN_METRICS]
        axes.hlines(expected, places - 0.38, places + 0.38, colors=MUTED, linestyles="dotted")
        axes.hlines(np.ones(len(places)), places - 0.38, places + 0.38, colors=MUTED, linewidth=0.9)
        axes.annotate("perfect order", (places[0] - 0.38, 0.985), color=MUTED, fontsize=8, va="top")
        axes.annotate("chance", (places[0] - 0.38, expected[0] + 0.01), color=MUTED, fontsize=8, va="bottom")
        axes.set_xticks(places, [METRIC_TITLES[name] for name in SHOWN_METRICS])
        axes.set_ylim(0, 1.04)
        if len(rows) > MOST_NAMED_INSIDE:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        else:
            axes.legend(loc="lower right")

    return draw(plot, "Ranking quality", WIDE)


def draw_gains(gains: NDArray[np.float64], names: tuple[str, str]) -> str:
    """Draw a histogram of the clips' gain in NDCG over whole lists."""

    def plot(axes: Axes) -> None:
        reach = max(0.05, float(np.abs(gains).max()))
        edges = np.linspace(-reach, reach, 30).tolist()
        counts = axes.hist(gains, edges, color=stage_colour("ppo"), alpha=0.85)[0]
        axes.axvline(0, color=INK, linewidth=1)
        axes.axvline(float(gains.mean()), color=INK, linewidth=1, linestyle="--")
        axes.set_ylim(0, float(np.max(counts)) * 1.15)
        axes.annotate("mean", (float(gains.mean()), float(np.max(counts)) * 1.08), fontsize=8, ha="center")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(f"NDCG of {names[1]} minus {names[0]}, per clip")
        axes.set_ylabel("clips")

    return draw(plot, "Gain per clip", WIDE)


class Panel(NamedTuple):
    """A figure of training: its title, its curves by logged name, and what to look for."""

    title: str
    curves: Mapping[str, str]
    caption: str


NDCG_CURVES = {"validation/ndcg": "all", "validation/ndcg@5": "@5", "validation/ndcg@1": "@1"}
RATE = "Rises over the warm-up, then falls to 0; a restart shows as a jump."
NORM = "Steady is good; spikes mean unusual clips or steps that are too large: see clip_gradients."
PANELS: Mapping[str, Sequence[Panel]] = {
    "pointwise": (
        Panel(
            "Validation NDCG",
            NDCG_CURVES,
            "Should rise and settle; if it falls while the loss still falls, the model overfits the source domain.",
        ),
        Panel("Loss (smooth L1)", {"train/loss": "loss"}, "Should fall and flatten; the mean since the previous row."),
        Panel("Learning rate", {"train/learning_rate": "rate"}, RATE),
        Panel("Gradient norm", {"train/gradient_norm": "norm"}, NORM),
    ),
    "finetune": (
        Panel("Validation NDCG", NDCG_CURVES, "Should rise from stage 1's level; few steps are often enough."),
        Panel("Accuracy on the pairs", {"train/accuracy": "training"}, "Near 1, the pairs are learned by heart."),
        Panel("Loss", {"train/loss": "loss"}, "Should fall; hinge: near 0 every pair has its margin."),
        Panel("Learning rate", {"train/learning_rate": "rate"}, RATE),
        Panel("Gradient norm", {"train/gradient_norm": "norm"}, NORM),
    ),
    "reward": (
        Panel(
            "Pair accuracy",
            {"validation/pair_accuracy": "validation", "train/accuracy": "training"},
            "A growing gap between the two is overfitting to the annotated pairs.",
        ),
        Panel("Loss (hinge)", {"train/loss": "loss"}, "Should fall; near 0 every pair has its margin."),
        Panel("Learning rate", {"train/learning_rate": "rate"}, RATE),
        Panel("Gradient norm", {"train/gradient_norm": "norm"}, NORM),
    ),
    "distill": (
        Panel("Validation NDCG", NDCG_CURVES, "Should rise towards the NDCG of the reward model's own order."),
        Panel(
            "Agreement with the reward model",
            {"train/agreement": "agreement"},
            "The share of pairs that both order alike.",
        ),
        Panel("Loss", {"train/loss": "loss"}, "Falls to the entropy of the reward model's preferences, not to 0."),
        Panel("Learning rate", {"train/learning_rate": "rate"}, RATE),
        Panel("Gradient norm", {"train/gradient_norm": "norm"}, NORM),
    ),
    "ppo": (
        Panel("Validation NDCG", NDCG_CURVES, "The goal: should rise from the start's level and stay there."),
        Panel(
            "Reward and value",
            {"train/reward": "reward", "train/value": "value"},
            "Should rise. Value, if there is a critic, is its estimate: it should learn to follow the reward.",
        ),
        Panel("KL to the start", {"train/kl_to_start": "KL"}, "How far the policy has moved from where it started."),
        Panel(
            "Advantage",
            {"train/advantage": "advantage"},
            "Reward minus value: large while the critic learns, then near 0.",
        ),
        Panel(
            "Reversed orders",
            {"train/reversed": "share"},
            "The share of proposed orders judged wrong; the rest at the end is about the pairs of equal grades.",
        ),
        Panel(
            "KL to the rollout's scores",
            {"train/kl": "KL"},
            "Small and falling; a jump means steps that are too large.",
        ),
        Panel(
            "Entropy of a pair's scores",
            {"train/entropy": "entropy"},
            "At most 0.69, an even choice; a collapse to 0 means diverging scores.",
        ),
        Panel(
            "Policy and rank loss",
            {"train/policy_loss": "policy", "train/rank_loss": "rank"},
            "Should fall with the reversed orders.",
        ),
        Panel("Value loss", {"train/value_loss": "value loss"}, "Should fall quickly and stay low."),
        Panel("Learning rates", {"train/actor_learning_rate": "actor", "train/critic_learning_rate": "critic"}, RATE),
        Panel("Gradient norms", {"train/actor_gradient_norm": "actor", "train/critic_gradient_norm": "critic"}, NORM),
    ),
}


def draw_training(stage: Stage, runs: Sequence[ReportedRun]) -> list[tuple[str, str]]:
    """Draw each of the stage's `PANELS` with all runs and the published curves; return figures and captions."""
    return [
        (draw(partial(_plot_curves, stage, runs, panel.curves), panel.title), panel.caption)
        for panel in PANELS[stage.name]
        if any(name in run.curves for run in runs for name in panel.curves)
    ]


def _plot_curves(stage: Stage, runs: Sequence[ReportedRun], names: Mapping[str, str], axes: Axes) -> None:
    """Plot a panel's curves; for several runs only one curve each, to keep them distinguishable."""
    is_published = stage.name in PUBLISHED and any(run.preset.startswith("lrmovienet") for run in runs)
    published = published_curve(PUBLISHED[stage.name]) if is_published else {}
    # Policies differ in what they log.
    names = {name: label for name, label in names.items() if any(name in run.curves for run in runs)}
    colours = [stage_colour(stage.name)]
    if len(runs) > 1:
        chosen = next((name for name in names if name in published), next(iter(names)))
        names, colours = {chosen: names[chosen]}, series_colours([stage.name] * len(runs))
    published_label: str | None = "published"
    for (name, label), style in zip(names.items(), STYLES, strict=False):
        longest = 0.0
        for run, colour in zip(runs, colours, strict=True):
            steps, values = run.curves.get(name, ([], []))
            full_label = f"{run.folder.name} {label}" if len(runs) > 1 else label
            axes.plot(steps, values, style, color=colour, linewidth=1.5, label=full_label)
            if name.startswith("validation/") and run.best_step in steps:
                axes.plot(run.best_step, values[steps.index(run.best_step)], "o", color=colour, markersize=5)
            longest = max(longest, *steps) if steps else longest
        if name in published:
            # Scale the published run to the length of ours.
            places = np.linspace(0, longest, len(published[name]) + 1)[1:]
            axes.plot(places, published[name], style, color=MUTED, linewidth=0.8, label=published_label)
            published_label = None
    axes.set_xlabel(stage.step)
    if len(axes.lines) > 1:
        axes.legend(loc="best")


def draw_reward_against_ndcg(run: ReportedRun) -> str:
    """Draw the path of stage 3 through mean reward and validation NDCG."""
    rewards = dict(zip(*run.curves["train/reward"], strict=True))
    ndcg = dict(zip(*run.curves["validation/ndcg"], strict=True))
    steps = [step for step in ndcg if step in rewards]

    def plot(axes: Axes) -> None:
        across, up = [rewards[step] for step in steps], [ndcg[step] for step in steps]
        axes.plot(across, up, color=GRID, linewidth=1)
        sizes = np.linspace(8, 45, len(steps))
        axes.scatter(across, up, s=sizes, color=stage_colour(run.stage), linewidths=0, zorder=3)
        for place, text in ((0, "first"), (-1, "last")):
            axes.annotate(
                f"{text} ({steps[place]:g})", (across[place], up[place]), xytext=(5, 5), textcoords="offset points",
                fontsize=8,
            )  # fmt: skip
        axes.margins(0.15)
        axes.set_xlabel("mean reward of the rollouts")
        axes.set_ylabel("validation NDCG")

    return draw(plot, "Reward against NDCG")


def draw_distance_from_start(runs: Sequence[ReportedRun]) -> tuple[str, str]:
    """Draw validation NDCG, and the rise of the reward, of runs of stage 3 against the root of the KL to their start.

    The KL grows with the square of a small step, so that its root is a distance (Gao et al. 2023). Rewards are drawn
    as their rise since the first, since only their differences mean something.
    """
    colours = series_colours([run.stage for run in runs])

    def plot(drawn: str, axes: Axes) -> None:
        for run, colour in zip(runs, colours, strict=True):
            distance, reward, ndcg = (
                dict(zip(*run.curves[curve], strict=True))
                for curve in ("train/kl_to_start", "train/reward", "validation/ndcg")
            )
            steps = [step for step in ndcg if step in distance and step in reward]
            # The KL never falls below 0 but for rounding.
            across = [max(distance[step], 0.0) ** 0.5 for step in steps]
            if drawn == "reward":
                up = [reward[step] - reward[steps[0]] for step in steps]
            else:
                up = [ndcg[step] for step in steps]
                if 0 in ndcg:
                    across, up = [0.0, *across], [ndcg[0], *up]
            axes.plot(across, up, "o-", color=colour, markersize=2.5, linewidth=1, label=run.name)
            axes.plot(across[-1:], up[-1:], "o", color=colour, markersize=7)
        axes.set_xlabel("root of the KL to the start")
        axes.set_ylabel("validation NDCG" if drawn == "ndcg" else "rise of the reward")
        if len(runs) > 1:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return (
        draw(partial(plot, "ndcg"), "NDCG by the distance from the start", WIDE),
        draw(partial(plot, "reward"), "Reward by the distance from the start", WIDE),
    )


def draw_accuracy_by_gap(by_gap: Sequence[Mapping[str, float]]) -> str:
    """Draw the reward model's accuracy on pairs of labels by grade gap."""

    def plot(axes: Axes) -> None:
        places = np.arange(len(by_gap))
        means = np.array([gap["mean"] for gap in by_gap])
        errors = [means - [gap["low"] for gap in by_gap], np.array([gap["high"] for gap in by_gap]) - means]
        axes.bar(places, means, 0.5, color=stage_colour("reward"), yerr=errors, capsize=3, ecolor=INK)
        axes.axhline(0.5, color=MUTED, linestyle="dotted")
        axes.set_xticks(places, [f"gap {gap['gap']:.0f}\n{gap['pairs']:,.0f} pairs" for gap in by_gap])
        axes.set_xlim(-0.6, len(by_gap) - 0.4)
        axes.set_ylim(0, 1)
        axes.set_ylabel("accuracy")

    return draw(plot, "Accuracy by grade gap")


def draw_calibration(bins: Sequence[Mapping[str, float]]) -> str:
    """Draw the reward model's accuracy by confidence."""

    def plot(axes: Axes) -> None:
        observed = _plot_bins(bins, "pairs", 0.5, stage_colour("reward"), axes)
        axes.set_xlim(0.48, 1.02)
        axes.set_ylim(min(0.45, *observed) - 0.03, 1.03)
        axes.set_xlabel("confidence")
        axes.set_ylabel("accuracy")

    return draw(plot, "Calibration")


def draw_reliability(bins: Sequence[Mapping[str, float]], stage: str) -> str:
    """Draw the share of relevant labels by the probability that a ranker's run gives them."""

    def plot(axes: Axes) -> None:
        _plot_bins(bins, "labels", 0, stage_colour(stage), axes)
        axes.set_xlim(-0.04, 1.04)
        axes.set_ylim(-0.04, 1.04)
        axes.set_xlabel("probability of relevance")
        axes.set_ylabel("share of relevant labels")

    return draw(plot, "Reliability")


def _plot_bins(
    bins: Sequence[Mapping[str, float]], counted: str, lowest: float, colour: str, axes: Axes
) -> list[float]:
    """Plot observed against predicted shares, with dots as large as the bins' shares of all; return the observed."""
    predicted, observed = [each["predicted"] for each in bins], [each["observed"] for each in bins]
    share = np.array([each[counted] for each in bins]) / sum(each[counted] for each in bins)
    axes.plot([lowest, 1], [lowest, 1], color=MUTED, linewidth=1, linestyle="dotted")
    axes.plot(predicted, observed, color=colour, linewidth=1.2)
    axes.scatter(predicted, observed, s=15 + 350 * share, color=colour, linewidths=0, alpha=0.85, zorder=3)
    return observed


def stage_colour(stage: str) -> str:
    """Return a stage's colour, the same in every figure; grey for a model that is not trained."""
    return SERIES[STAGES[stage].series] if stage in STAGES else MUTED


def series_colours(stages: Sequence[str]) -> list[str]:
    """Return a colour for each row: its stage's, or an unused one if the stage is repeated."""
    spare = [colour for colour in SERIES if colour not in map(stage_colour, stages)]
    colours: list[str] = []
    for stage in stages:
        own = stage_colour(stage)
        colours.append(own if own not in colours else spare[len(colours) % len(spare)])
    return colours
