"""A comparison of methods as one self-contained HTML page; all text is escaped."""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from lr2ppo.evaluation.comparison import METRIC_TITLES, describe_intervals, describe_size
from lr2ppo.evaluation.methods import MethodTable, describe_methods, show_chosen, show_count, show_last, show_time
from lr2ppo.evaluation.results import chance_means
from lr2ppo.files import write_text
from lr2ppo.report.figures import INK, MARKERS, MUTED, SERIES, STYLES, draw, stage_colour
from lr2ppo.report.page import open_template
from lr2ppo.version import __version__

# The distance of two methods at one place, of the whole axis.
BESIDE = 0.012
INCHES_PER_METHOD = 0.3
WIDTH = 7.0


def write_methods_page(name: str, tables: Sequence[MethodTable], axis: str | None, out: Path) -> None:
    """Write the page of a comparison, with a table per data set and, if there is an axis, NDCG along it."""
    text = open_template("methods.html").render(
        title=f"lr2ppo: {name}",
        written=time.strftime("%Y-%m-%d %H:%M"),
        version=__version__,
        along=None if axis is None else draw_along(tables, axis),
        sections=[_section(table) for table in tables],
    )
    write_text(out, text)


def _section(table: MethodTable) -> dict[str, object]:
    rows = table.comparison.rows
    chance = chance_means(table.against.row)
    return {
        "data": table.data,
        "headline": describe_methods(table),
        "against": table.against.row.name,
        "titles": [METRIC_TITLES[name] for name in table.metrics],
        "chance": [chance[name] for name in table.metrics],
        "methods": [
            {
                "name": method.row.name,
                "estimates": [estimates[name] for name in table.metrics],
                "contrast": contrast,
                "last": show_last(method),
                "time": show_time(method.seconds),
                "weights": show_count(method.weights),
                "chosen": show_chosen(method),
            }
            for method, estimates, contrast in zip(
                table.methods, table.comparison.estimates, table.contrasts, strict=True
            )
        ],
        "size": describe_size(rows),
        "intervals": describe_intervals(rows),
        "notes": table.notes,
        "picture": draw_methods(table),
    }


def draw_methods(table: MethodTable) -> str:
    """Draw NDCG over whole lists of every method with its 95 % interval, and a small dot for each of its runs."""

    def plot(axes: Axes) -> None:
        places = -np.arange(len(table.methods))
        estimates = [own["ndcg"] for own in table.comparison.estimates]
        for place, method, found in zip(places, table.methods, estimates, strict=True):
            colour = stage_colour(method.stage)
            errors = [[found.mean - found.low], [found.high - found.mean]]
            axes.errorbar([found.mean], [place], xerr=errors, fmt="o", markersize=5, color=colour)
            if len(method.row.runs) > 1:
                own = method.row.run_means("ndcg")
                axes.plot(own, np.full(len(own), place - 0.25), "o", markersize=2.5, color=colour, markeredgewidth=0)
        chosen = estimates[table.methods.index(table.against)].mean
        axes.axvline(chosen, color=MUTED, linewidth=0.9, linestyle="dotted")
        axes.set_yticks(places, [method.row.name for method in table.methods], color=INK)
        axes.set_ylim(places[-1] - 0.7, 0.7)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")

    size = (WIDTH, 0.8 + INCHES_PER_METHOD * len(table.methods))
    return draw(plot, f"NDCG(all), {table.data}", size)


def draw_along(tables: Sequence[MethodTable], axis: str) -> str:
    """Draw NDCG over whole lists of every method over the data sets, whose names are numbers on the axis."""

    def plot(axes: Axes) -> None:
        at = np.array([float(table.data) for table in tables])
        is_log = bool(at.min() > 0 and at.max() > 10 * at.min())
        methods = tables[0].methods
        for number, method in enumerate(methods):
            # Side by side: intervals of equal places would hide each other.
            aside = BESIDE * (number - (len(methods) - 1) / 2)
            found = [table.comparison.estimates[number]["ndcg"] for table in tables]
            means = np.array([estimate.mean for estimate in found])
            errors = [means - [estimate.low for estimate in found], [estimate.high for estimate in found] - means]
            axes.errorbar(
                at * (at.max() / at.min()) ** aside if is_log else at + np.ptp(at) * aside,
                means,
                errors,
                marker=MARKERS[number % len(MARKERS)],
                linestyle=STYLES[number % len(STYLES)],
                markersize=4.5,
                color=SERIES[number % len(SERIES)],
                label=method.row.name,
            )
        if is_log:
            axes.set_xscale("log")
        axes.set_xticks(at, [table.data for table in tables])
        axes.minorticks_off()
        axes.set_xlabel(axis)
        axes.set_ylabel(METRIC_TITLES["ndcg"])
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))

    return draw(plot, f"NDCG(all) along {axis}", (WIDTH, 3.4))
