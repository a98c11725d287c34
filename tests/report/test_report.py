"""The report of runs, and the page in a browser."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.axes import Axes
from numpy.typing import NDArray
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from lr2ppo.config.load import load_config
from lr2ppo.data import Clip
from lr2ppo.distributed.processes import Processes
from lr2ppo.errors import UserError
from lr2ppo.evaluation.calibration import calibration_bins, describe_reward_model
from lr2ppo.evaluation.pictures import grade_colour
from lr2ppo.report.cases import choose_groups, frames_root, thumbnails
from lr2ppo.report.figures import draw
from lr2ppo.report.load import find_rows, gather_run, preset_differences
from lr2ppo.report.page import write_report
from lr2ppo.runs.stages import LR2PPO
from lr2ppo.stages.evaluate import evaluate, show_table
from tests.conftest import REPOSITORY
from tests.helpers.browser import console_errors, open_browser
from tests.stages.test_stages import PRESET, run_pointwise, run_ppo, run_reward

pytestmark = pytest.mark.slow

HOSTILE = "<script>document.title = 'hacked'</script>"


@pytest.fixture(scope="module")
def logs(tiny_world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluated runs of all stages; the test clips have frames, descriptions, and one has a hostile label."""
    root = tmp_path_factory.mktemp("report")
    shutil.copytree(tiny_world, root / "data")
    path = root / "data" / "test_data.json"
    clips = json.loads(path.read_text(encoding="utf-8"))
    for number, clip in enumerate(clips):
        image = f"frames/{number}.jpg"
        (root / "data" / image).parent.mkdir(exist_ok=True)
        Image.new("RGB", (300, 200), (15 * number, 80, 120)).save(root / "data" / image)
        clip |= {"description": f"a story of number {number} & others", "image": [image, "frames/gone.jpg"]}
    clips[3]["tags"][0]["tag"] = HOSTILE
    path.write_text(json.dumps(clips), encoding="utf-8")
    alone = Processes(rank=0, world_size=1, device=torch.device("cpu"))
    overrides = [f"data.root={root / 'data'}", f"logs={root / 'logs'}"]
    run_pointwise(alone, overrides)
    run_reward(alone, overrides)
    run_ppo(alone, [*overrides, "train.epochs=6"])
    for stage in LR2PPO:
        settings = [f"name={stage}/a", f"logs={root / 'logs'}", "device=cpu"]
        evaluate(load_config(PRESET / "evaluate.yaml", "evaluate", settings))
    return root / "logs"


@pytest.fixture(scope="module")
def page(logs: Path) -> Path:
    return write_report(find_rows(["ppo/a"], logs), "test", logs / "report.html")


@pytest.fixture(scope="module")
def seeds(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs `pointwise/seed-1`, `ppo/seed-1`, ... of three seeds, whose scores differ a little."""
    root = tmp_path_factory.mktemp("seeds")
    rng = np.random.default_rng(0)
    for stage in ("pointwise", "ppo"):
        for seed in (1, 2, 3):
            run = shutil.copytree(logs / stage / "a", root / stage / f"seed-{seed}")
            config = (run / "config.yaml").read_text(encoding="utf-8")
            (run / "config.yaml").write_text(re.sub("(?m)^seed: .*", f"seed: {seed}", config), encoding="utf-8")
            cases = json.loads((run / "cases.json").read_text(encoding="utf-8"))
            for case in cases["test"]:
                case["scores"] = (np.array(case["scores"]) + rng.normal(0, 0.1, len(case["scores"]))).tolist()
            (run / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    return root


def names_of(rows: list[list[Path]]) -> list[list[str]]:
    return [[f"{folder.parent.name}/{folder.name}" for folder in row] for row in rows]


def test_a_single_row_includes_the_runs_that_its_runs_started_from(logs: Path, seeds: Path) -> None:
    assert names_of(find_rows(["ppo/a"], logs)) == [["pointwise/a"], ["reward/a"], ["ppo/a"]]
    assert names_of(find_rows(["ppo/a", "pointwise/a"], logs)) == [["pointwise/a"], ["ppo/a"]]
    three = [f"ppo/seed-{seed}" for seed in (1, 2, 3)]
    # They all started from the same run.
    assert names_of(find_rows([",".join(three)], seeds)) == [["pointwise/a"], ["reward/a"], three]


def test_a_path_of_a_run_may_hold_commas(logs: Path, tmp_path: Path) -> None:
    run = shutil.copytree(logs / "ppo" / "a", tmp_path / "mine, all" / "ppo" / "a")
    assert find_rows([str(run)], logs)[-1] == [run]


def test_a_run_named_twice_is_refused(seeds: Path) -> None:
    with pytest.raises(UserError, match="ppo/seed-1: this run is named twice"):
        find_rows(["ppo/seed-1,ppo/seed-2", "ppo/seed-1"], seeds)


def test_an_evaluation_leaves_its_report(logs: Path) -> None:
    text = (logs / "ppo" / "a" / "report.html").read_text(encoding="utf-8")
    (headline,) = re.findall(r'<p class="headline">([^<]*)</p>', text)
    assert re.match(r"(No difference between|\w+/a orders best:) ", headline)
    assert "0." in headline


def test_rows_of_seeds_show_each_seed_and_are_compared_as_in_the_terminal(
    seeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [",".join(f"{stage}/seed-{seed}" for seed in (1, 2, 3)) for stage in ("pointwise", "ppo")]
    text = write_report(find_rows(names, seeds), "test", tmp_path / "page.html").read_text(encoding="utf-8")
    (headline,) = re.findall(r'<p class="headline">([^<]*)</p>', text)
    assert "3 runs on 17 clips" in text
    assert "small dots are the row&#39;s runs" in text
    assert all(f"<h3>{name}</h3>" in text for row in names for name in row.split(","))
    show_table(names, load_config(PRESET / "evaluate.yaml", "evaluate", [f"logs={seeds}"]))
    printed = " ".join(capsys.readouterr().out.split())
    assert headline in printed
    assert "ppo/seed-* x 3" in printed
    shown = re.search(r"ppo/seed-\* x 3 - pointwise/seed-\* x 3 ([+-]0\.\d+)", printed)
    assert shown
    assert f"<td>{shown[1]}<small>" in text


def test_rows_evaluated_on_other_clips_are_named_and_left_out(logs: Path, seeds: Path, tmp_path: Path) -> None:
    other = shutil.copytree(logs / "reward" / "a", tmp_path / "reward" / "other")
    cases = json.loads((other / "cases.json").read_text(encoding="utf-8"))
    cases["test"] = cases["test"][1:]
    (other / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    rows = find_rows(["ppo/seed-1,ppo/seed-2", "ppo/seed-3", str(other)], seeds)
    text = write_report(rows, "test", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Not in the table: reward/other was evaluated on other clips." in text


def test_the_page_needs_nothing_but_itself(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#]+)|url\(([^)#]+)""", text)
    assert all(part.startswith("data:") for found in loaded for part in found if part)
    assert "@import" not in text


def test_the_page_shows_results_training_reward_and_facts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for part in (
        "paired differences",
        "Reversed orders",
        "Reward against NDCG",
        "Calibration",
        "Accuracy by grade gap",
    ):
        assert part in text
    assert "train.epochs" in text
    assert "preset: 16" in text
    assert "Peak memory" in text


def test_the_page_shows_how_reliable_the_probabilities_are_of_runs_that_have_some(logs: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(logs, tmp_path / "logs")
    bins = [{"predicted": 0.2, "observed": 0.1, "labels": 60}, {"predicted": 0.8, "observed": 0.9, "labels": 42}]
    reliability = {"calibration_error": 0.123, "brier": 0.234, "relevant": 0.4, "bins": bins}
    for stage in LR2PPO:
        path = copied / stage / "a" / "results.json"
        results = json.loads(path.read_text(encoding="utf-8"))
        results["test"].pop("reliability", None)
        if stage == "pointwise":
            results["test"]["reliability"] = reliability
        path.write_text(json.dumps(results), encoding="utf-8")
    text = write_report(find_rows(["pointwise/a", "ppo/a"], copied), "test", tmp_path / "page.html").read_text("utf-8")
    section = text[text.index('<section id="probabilities">') :].partition("</section>")[0]
    assert section.count("<svg") == 1
    assert "pointwise/a: calibration error 0.123" in section
    assert "Brier score 0.234, and 0.240 if" in section
    # Evaluated by an earlier version.
    text = write_report(find_rows(["ppo/a", "reward/a"], copied), "test", tmp_path / "page.html").read_text("utf-8")
    assert "probabilities" not in text


def test_reward_and_ndcg_are_drawn_along_the_distance_from_the_start(logs: Path, tmp_path: Path) -> None:
    for name in ("few", "many"):
        shutil.copytree(logs / "ppo" / "a", tmp_path / "ppo" / name)
    text = write_report(find_rows(["ppo/few", "ppo/many"], tmp_path), "test", tmp_path / "page.html").read_text("utf-8")
    section = text[text.index('<section id="reward">') :].partition("</section>")[0]
    assert "NDCG by the distance from the start" in section
    assert "Reward by the distance from the start" in section
    assert re.search(r"Its pairs: ppo/few: \S+\.json; ppo/many: \S+\.json", section)


def test_runs_that_were_not_evaluated_still_show_their_training(logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs / "pointwise" / "a", tmp_path / "pointwise" / "bare")
    for name in ("results.json", "cases.json", "finished.json"):
        (tmp_path / "pointwise" / "bare" / name).unlink()
    text = write_report([[tmp_path / "pointwise" / "bare"]], "test", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "sh ppo_eval.sh RUN split=test" in text
    assert "Validation NDCG" in text


@pytest.mark.parametrize("name", ["a$x_{$b", "$", r"$\frac$", "a$b$c"])
def test_a_name_with_dollar_signs_is_no_formula(name: str) -> None:
    def plot(axes: Axes) -> None:
        axes.set_xlabel(name)

    assert name in draw(plot, f"named {name}")


def test_a_matplotlibrc_of_the_current_folder_starts_no_latex(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n", encoding="utf-8")
    started = tmp_path / "started"
    for name in ("latex", "dvipng", "kpsewhich"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([sys.executable, "-c", DRAWS], cwd=tmp_path, env=environment, check=True, timeout=120)
    assert not started.exists()


DRAWS = """
import matplotlib
import numpy as np
from lr2ppo.data import Clip
from lr2ppo.evaluation.pictures import case_picture
from lr2ppo.report.figures import draw

assert matplotlib.rcParams["text.usetex"]
draw(lambda axes: axes.set_xlabel("step"), "a title")
case_picture(Clip("a", ("b", "c"), np.array([0, 1])), np.array([0.1, 0.2]), [])
"""


def test_published_figures_and_curves_are_shown_for_a_run_of_their_preset(logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs / "ppo" / "a", tmp_path / "ppo" / "a")
    config = tmp_path / "ppo" / "a" / "config.yaml"
    config.write_text(config.read_text(encoding="utf-8").replace("preset: mini", "preset: lrmovienet"))
    text = write_report([[tmp_path / "ppo" / "a"]], "test", tmp_path / "page.html").read_text(encoding="utf-8")
    assert "published in 636 min" in text
    assert ">published<" in text
    assert ">published<" not in (logs / "ppo" / "a" / "report.html").read_text(encoding="utf-8")


def test_grades_of_another_scale_have_colours_and_a_legend(logs: Path, page: Path, tmp_path: Path) -> None:
    run = shutil.copytree(logs / "pointwise" / "a", tmp_path / "pointwise" / "a")
    cases = json.loads((run / "cases.json").read_text(encoding="utf-8"))
    for case in cases["test"]:
        case["grades"] = [5 * grade for grade in case["grades"]]
    (run / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    other = write_report([[run]], "test", tmp_path / "page.html").read_text(encoding="utf-8")
    wanted = {page.read_text(encoding="utf-8"): ("0, not relevant", "1, somewhat", "2, relevant")}
    wanted[other] = ("0, not relevant", "5", "10, most relevant")
    for text, legend in wanted.items():
        shown = re.findall(r'<span class="grade g(\d+)">([^<]*)</span>', text)
        assert [meaning for _, meaning in shown] == list(reversed(legend))
        for grade, _ in shown:
            assert f".g{grade} {{ --grade: light-dark({grade_colour(int(grade))}," in text


def test_changes_from_the_preset_are_reported(logs: Path) -> None:
    run = gather_run(logs / "ppo" / "a", "test")
    changed = preset_differences(run)
    assert changed["train.epochs"] == 16
    assert "train.clips_per_batch" not in changed
    assert "name" not in changed
    # A run of someone else must not name files to show.
    for preset in (str(REPOSITORY / "configs" / "mini"), "../configs/mini", ".."):
        assert preset_differences(replace(run, config={**run.config, "preset": preset})) == {}


def test_a_damaged_run_is_reported_in_a_message(logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs / "pointwise" / "a", tmp_path / "pointwise" / "a")
    (tmp_path / "pointwise" / "a" / "cases.json").write_text("[1", encoding="utf-8")
    with pytest.raises(UserError, match=r"cases\.json: cannot be read"):
        write_report([[tmp_path / "pointwise" / "a"]], "test", tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("evaluated", "named", "root"),
    [
        ("data/test_data.json", "test_data.json", "data"),
        ("data/splits/test.json", "splits/test.json", "data"),
        ("data/val.json", "test.json", "data"),
        ("/elsewhere/test.json", "/elsewhere/test.json", "/elsewhere"),
        ("data/test.json", "*/*/*", "data"),
        ("test.json", "a/b/c/test.json", "."),
        ("data/test.json", "", "data"),
        ("data/test.json", 5, "data"),
        ("", "test.json", "."),
    ],
)
def test_frames_are_beside_the_file_that_was_evaluated(logs: Path, evaluated: str, named: object, root: str) -> None:
    """Whatever a run's folder says, which may come from someone else."""
    run = gather_run(logs / "ppo" / "a", "test")
    assert run.evaluation is not None
    evaluation = replace(run.evaluation, results={**run.evaluation.results, "annotations": evaluated})
    run = replace(run, evaluation=evaluation, config={**run.config, "data.test": named})
    assert frames_root(run) == Path(root)


def test_frames_outside_of_the_data_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for place in (tmp_path, tmp_path / "data"):
        Image.new("RGB", (30, 20)).save(place / "frame.png")
    clip = Clip("a", ("label",), images=("frame.png", "../frame.png", "gone.png"))
    assert len(thumbnails(clip, tmp_path / "data")) == 1


@given(arrays(np.float64, st.integers(1, 40), elements=st.floats(-1, 1)), st.booleans(), st.integers(0, 9))
def test_groups_of_clips_are_disjoint_and_hold_the_extremes(
    gains: NDArray[np.float64], compared: bool, seed: int
) -> None:
    most, least, drawn = (group["clips"] for group in choose_groups(gains, seed, compared))
    together = [*most, *least, *drawn]
    assert len(set(together)) == len(together)
    assert not most or gains[most].min() >= np.delete(gains, most).max(initial=-np.inf)
    if compared:
        assert all(gains[clip] > 0 for clip in most)
        assert all(gains[clip] < 0 for clip in least)


@given(arrays(np.float64, st.integers(1, 200), elements=st.floats(-5, 5)), st.floats(0.1, 5))
def test_bins_of_confidence_hold_every_pair_once(signed: NDArray[np.float64], temperature: float) -> None:
    bins = calibration_bins(signed, temperature)
    assert sum(each["pairs"] for each in bins) == len(signed)
    right = sum(each["pairs"] * each["observed"] for each in bins)
    assert right == pytest.approx(float((signed > 0).sum() + 0.5 * (signed == 0).sum()))
    assert all(0.5 <= each["predicted"] <= 1 for each in bins)


def test_accuracy_is_reported_by_grade_gap() -> None:
    grades = np.array([2, 0, 1])
    # Pairs (0, 1), (0, 2), (1, 2): right by a gap of 2, right by 1, wrong by 1.
    margins = np.array([[1.0, 0.5, 0.2], [1.0, 0.5, 0.2]])
    judged = describe_reward_model([grades], [margins], 1.0, samples=10, seed=0)["by_gap"]
    assert [(gap["gap"], gap["pairs"], gap["mean"]) for gap in judged] == [(1, 2, 0.5), (2, 1, 1.0)]


@pytest.fixture(scope="module")
def browser(page: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    with open_browser(tmp_path_factory.mktemp("profile")) as chrome:
        chrome.get(page.as_uri())
        yield chrome


def test_the_page_opens_without_errors_and_shows_clips_with_frames(browser: Chrome) -> None:
    assert console_errors(browser) == []
    assert browser.title == "lr2ppo: ppo/a"
    clips = browser.find_elements(By.CLASS_NAME, "clip")
    assert len(clips) >= 4
    assert browser.execute_script("return arguments[0].naturalWidth", clips[0].find_element(By.TAG_NAME, "img")) > 50
    assert len(clips[0].find_elements(By.CSS_SELECTOR, "line")) == 6


def test_the_search_finds_labels_and_a_label_of_markup_is_text(browser: Chrome) -> None:
    search = browser.find_element(By.ID, "search")
    search.send_keys("<SCRIPT>")
    assert browser.find_element(By.ID, "found").text.startswith("1 of 17 clips")
    (clip,) = browser.find_elements(By.CLASS_NAME, "clip")
    assert HOSTILE in [item.text for item in clip.find_elements(By.CSS_SELECTOR, "ol.left li")]
    search.clear()
    search.send_keys("nothing has this")
    assert browser.find_element(By.ID, "found").text.startswith("0 of 17")
    assert browser.title == "lr2ppo: ppo/a"


def test_the_switch_goes_between_light_and_dark(browser: Chrome) -> None:
    def paper() -> str:
        return browser.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")

    before = paper()
    browser.find_element(By.ID, "theme").click()
    assert paper() != before
    browser.find_element(By.ID, "theme").click()
    assert paper() == before
