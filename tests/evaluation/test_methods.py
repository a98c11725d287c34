"""The table of methods: each against a chosen one, with adjusted p-values, in words, Markdown and LaTeX."""

import re

import numpy as np
import pytest
from scipy import stats

from lr2ppo.evaluation.comparison import estimate_difference
from lr2ppo.evaluation.methods import (
    Method,
    MethodTable,
    contrasts_over_data,
    describe_methods,
    format_latex,
    format_markdown,
    format_summary_latex,
    format_summary_markdown,
    format_summary_text,
    format_text,
)
from tests.evaluation.test_comparison import draw, make_row


def make_method(name: str, mean: float, seed: int, **facts: object) -> Method:
    row = make_row(name, *(draw(mean, 60, seed=seed + run) for run in range(5)))
    defaults: dict[str, object] = {"stage": "ppo", "seconds": 12.4, "weights": 185_000, "tried": 1, "chosen": []}
    defaults |= {"commits": {"abc"}, "notes": [], "last": 0.512}
    return Method(**{"row": row} | defaults | facts)  # type: ignore[arg-type]


def make_table(**means: float) -> MethodTable:
    methods = [make_method(name, mean, 100 * place) for place, (name, mean) in enumerate(means.items())]
    return MethodTable.make("mini", methods, "ours", "test")


def test_each_method_is_compared_with_the_chosen_one_whatever_is_best() -> None:
    table = make_table(low=0.3, ours=0.6, near=0.6, high=0.9)
    assert [contrast is None for contrast in table.contrasts] == [False, True, False, False]
    for method, contrast in zip(table.methods, table.contrasts, strict=True):
        if contrast is not None:
            finding = estimate_difference(method.row, table.against.row, "ndcg", 2000, 7)
            assert contrast.difference == finding.estimate
            # Three contrasts are planned, not all six pairs.
            assert finding.p <= contrast.adjusted_p <= min(1, 3 * finding.p)
    said = describe_methods(table)
    assert re.search(r"^Above ours: high \(\+0\.[23]\d\d\)\. Below ours: low \(-0\.[23]\d\d\)\.", said)
    assert said.endswith("No difference to ours can be seen with 5 runs on 60 clips: near.")


def test_where_no_difference_is_seen_none_has_a_direction() -> None:
    assert describe_methods(make_table(ours=0.6, near=0.6)).startswith("No difference to ours can be seen")


def test_markdown_has_a_line_a_method_between_chance_and_the_perfect_order() -> None:
    lines = format_markdown(make_table(ours=0.6, **{"a|b": 0.9})).splitlines()
    assert [line.split("|")[1].strip() for line in lines] == ["", "---", "chance", "ours", "a\\", "perfect order"]
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert re.search(
        r"\| a\\\|b \| .* \| 0\.\d{3} \[\.\d{3} \.\d{3}\] \| .* \| \+0\.\d{3} \[\+\.\d{3} \+\.\d{3}\] ", lines[4]
    )
    assert lines[4].endswith("| 12 s | 185k |")


@pytest.mark.parametrize("name", ["50 % & more_{x}", "a~b^c#d$e", "back\\slash"])
def test_latex_escapes_what_would_end_a_cell_or_start_a_command(name: str) -> None:
    table = MethodTable.make("mini", [make_method("ours", 0.6, 0), make_method(name, 0.7, 9)], "ours", "test")
    line = format_latex(table).splitlines()[5]
    columns = re.search(r"tabular}{(l r*|lr*)}", format_latex(table))
    assert columns is not None
    assert len(re.findall(r"(?<!\\)&", line)) == len(columns[1]) - 1
    assert not re.search(r"(?<!\\)[%#$_]", line)


def test_the_terminal_shows_what_was_chosen_of_how_many() -> None:
    methods = [
        make_method("ours", 0.6, 0),
        make_method("tuned", 0.7, 9, tried=3, chosen=["finetune:train.learning_rate=0.001"], weights=2_310_000),
    ]
    text = format_text(MethodTable.make("mini", methods, "ours", "test"))
    assert text.splitlines()[2].endswith("12 s      2.3M  learning_rate=0.001 (of 3)")
    assert max(map(len, text.splitlines())) <= 120


def test_a_note_starts_no_command_and_no_markup() -> None:
    """It may hold what a run's folder says, which may come from someone else."""
    hostile = "ours: warning: x\n\\input{/etc/passwd}\r<img src=x>"
    methods = [make_method("ours", 0.6, 0, notes=[hostile]), make_method("other", 0.7, 9, commits={"a\n\\input{b}"})]
    table = MethodTable.make("mini", methods, "ours", "test")
    assert len(table.notes) == 2
    latex = format_latex(table).splitlines()
    assert latex[-2] == "% ours: warning: x \\input{/etc/passwd} <img src=x>"
    assert not [line for line in latex if line.startswith("\\input")]
    assert r"\<img src=x\>" in format_markdown(table)


def test_what_a_table_should_not_be_read_without_is_below_it_in_every_form() -> None:
    methods = [
        make_method("ours", 0.6, 0, commits={"abc", "def"}, notes=["ours: warning: 3 clips | were left out"]),
        make_method("other", 0.7, 9, tried=3, chosen=["finetune:train.learning_rate=0.001"]),
    ]
    table = MethodTable.make("mini", methods, "ours", "val")
    assert table.notes == [
        "ours: warning: 3 clips | were left out",
        "note: on these clips the best step of each run and the tuned values were chosen",
        "note: the runs are of 2 states of the program: abc, def",
    ]
    assert format_markdown(table).splitlines()[-5] == r"ours: warning: 3 clips \| were left out"
    assert format_latex(table).splitlines()[-1] == "% note: the runs are of 2 states of the program: abc, def"
    assert not MethodTable.make("mini", [make_method("ours", 0.6, 0), methods[1]], "ours", "test").notes


def tables_of_two(**means: tuple[float, float]) -> list[MethodTable]:
    """Tables of two data sets, on which methods have these means."""
    tables = []
    for data in range(2):
        methods = [
            make_method(name, own[data], 1000 * data + 100 * place) for place, (name, own) in enumerate(means.items())
        ]
        tables.append(MethodTable.make(f"data_{data}", methods, "ours", "test"))
    return tables


def test_over_data_sets_a_seed_is_one_value() -> None:
    tables = tables_of_two(ours=(0.5, 0.6), better=(0.6, 0.7))
    ours, better = contrasts_over_data(tables)
    assert ours is None
    assert better is not None
    means = np.array([[method.row.run_means("ndcg") for method in table.methods] for table in tables])
    seeds = (means[:, 1] - means[:, 0]).mean(0)
    low, high = stats.t.interval(0.95, 4, seeds.mean(), stats.sem(seeds))
    assert better.difference.mean == pytest.approx(seeds.mean())
    assert (better.difference.low, better.difference.high) == pytest.approx((low, high))
    assert better.adjusted_p == pytest.approx(stats.ttest_1samp(seeds, 0).pvalue)


def test_the_summary_has_each_methods_mean_on_every_data_set_and_over_all() -> None:
    tables = tables_of_two(ours=(0.5, 0.6), better=(0.6, 0.7))
    lines = format_summary_markdown(tables).splitlines()
    assert lines[0] == r"|  | data\_0 | data\_1 | mean | mean minus ours | adjusted p |"
    means = [table.comparison.estimates[1]["ndcg"].mean for table in tables]
    assert lines[4].startswith(f"| better | {means[0]:.3f} | {means[1]:.3f} | {np.mean(means):.3f} | +0.")
    text = format_summary_text(tables).splitlines()
    assert text[0].startswith("NDCG(all), mean of 2 data sets")
    assert f"{np.mean(means):.3f}" in text[3]
    assert max(map(len, text)) <= 120
    assert len(re.findall(r"(?<!\\)&", format_summary_latex(tables).splitlines()[4])) == 5


def test_one_seed_has_no_interval_over_data_sets() -> None:
    rows = {name: make_row(name, draw(0.5, 60, seed=place)) for place, name in enumerate(("ours", "other"))}
    methods = [make_method(name, 0.5, 0, row=row) for name, row in rows.items()]
    tables = [MethodTable.make(data, methods, "ours", "test") for data in ("a", "b")]
    assert contrasts_over_data(tables) == [None, None]
    assert "nan" not in format_summary_markdown(tables)
