"""The demo's page: inputs are parsed correctly, results are correct, and all text is escaped."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import element_to_be_clickable
from selenium.webdriver.support.wait import WebDriverWait

from lr2ppo.config.load import dump_config, load_config
from lr2ppo.data import Clip, annotations, write_clips
from lr2ppo.demo.address import listen
from lr2ppo.demo.inputs import MOST_LABELS, find_examples, format_labels, parse_labels, uploaded_frames
from lr2ppo.demo.page import import_gradio, message_html
from lr2ppo.demo.results import MATRIX_LABELS, Result, agreements, bar_lengths, matrix_cells, ordinal, render_result
from lr2ppo.errors import UserError
from lr2ppo.inference.labels import RankedLabel
from lr2ppo.inference.ranker import LabelRanker
from tests.conftest import REPOSITORY
from tests.helpers.browser import console_errors, open_browser, texts_of

RUN = "ppo/tiny"
NASTY = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "${alert(1)}", "{{ after }}", "a & b", "it's"]
texts = st.text(min_size=1, max_size=12).map(lambda text: " ".join(text.split())).filter(bool)
label_lists = st.lists(texts, min_size=1, max_size=8, unique=True)


class Page(HTMLParser):
    """HTML as a browser parses it: its tags, and the text inside elements of each class or scope."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        name = found.get("class") or found.get("scope") or tag
        self.tags.append(tag)
        self.open.append(name)
        self.texts.setdefault(name, []).append("")
        assert not [key for key in found if key.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for name in self.open:
            self.texts[name][-1] += data


def ranked(labels: Sequence[str], scores: Sequence[float] | None = None) -> list[RankedLabel]:
    return [RankedLabel(label, score) for label, score in zip(labels, scores or range(len(labels), 0, -1), strict=True)]


@given(label_lists)
def test_labels_are_read_back_as_they_are_written(labels: list[str]) -> None:
    assert parse_labels(format_labels(labels)) == (labels, [])


@pytest.mark.parametrize(
    ("typed", "labels", "repeated"),
    [
        ("boat, car,house", ["boat", "car", "house"], []),
        ("boat\r\n car \n\n,\nhouse", ["boat", "car", "house"], []),
        ("boat, car\nboat\ncar, boat", ["boat", "car"], ["boat", "car"]),
        ('"salt, pepper", sugar, "a, b"', ["salt, pepper", "sugar", "a, b"], []),
        ('6" nail\n"open\nnext', ['6" nail', "open", "next"], []),
        ("fire   engine\tred", ["fire engine red"], []),
    ],
)
def test_labels_are_one_per_line_or_separated_by_commas(typed: str, labels: list[str], repeated: list[str]) -> None:
    assert parse_labels(typed) == (labels, repeated)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (" \n,, ", "no labels yet"),
        (",".join(map(str, range(MOST_LABELS + 1))), "at most 500"),
        ("boat\n" + "x" * 200_000, "Line 2 .*larger"),
        ("boat\n" + "x" * 201, "Line 2 holds a label of 201 characters"),
    ],
)
def test_no_labels_far_too_many_and_too_long_ones_are_refused(typed: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_labels(typed)


def test_uploads_are_images_in_order_or_one_video() -> None:
    assert uploaded_frames(["/up/b.png", "/up/a.jpg"]) == [Path("/up/b.png"), Path("/up/a.jpg")]
    assert uploaded_frames(["/up/a.MP4"]) == Path("/up/a.MP4")
    assert uploaded_frames(["/up/a.gif"]) == Path("/up/a.gif")
    with pytest.raises(UserError, match="no frames yet"):
        uploaded_frames([])
    with pytest.raises(UserError, match=r"^a\.webm is a video, beside 1 more"):
        uploaded_frames(["/up/b.png", "/up/a.webm"])


@given(st.lists(texts | st.sampled_from(NASTY), min_size=2, max_size=6, unique=True), st.randoms())
def test_text_stays_text_wherever_a_label_is_shown(labels: list[str], random: Random) -> None:
    before = [*labels]
    random.shuffle(before)
    page = Page(render_result(Result(RUN, ranked(labels), ranked(before), np.full([len(labels)] * 2, 0.5))))
    plain = [str(number) for number in range(len(labels))]
    order = [plain[labels.index(label)] for label in before]
    same = Page(render_result(Result(RUN, ranked(plain), ranked(order), np.full([len(labels)] * 2, 0.5))))
    assert page.tags == same.tags
    assert page.texts["label"] == before + labels
    assert page.texts["col"] == page.texts["row"] == labels
    assert page.texts["q"] == labels[:1]


def test_moves_are_counted_from_the_earlier_order() -> None:
    html = render_result(Result(RUN, ranked("dabc"), ranked("abcd")))
    assert [text.replace("\xa0", "") for text in re.findall(r"[▲▼]&nbsp;\d+|(?<=>)=", html)] == ["▲&nbsp;3"] + [
        "▼&nbsp;1"
    ] * 3
    assert "comes first, up from 4th" in html
    assert html.count("<path") == 4
    assert 'd="M0 3.5 C50 3.5 50 0.5 100 0.5"' in html


@pytest.mark.parametrize(
    ("run", "titles", "names"),
    [
        ("ppo/a", ["Stage 1: the ranker", "Stage 3: LR2PPO"], ["stage 1", "stage 3"]),
        ("finetune/a", ["Stage 1: the ranker", "Direct fine-tuning"], ["stage 1", "direct fine-tuning"]),
        ("mine", ["Stage 1: the ranker", "mine"], ["stage 1", "mine"]),
    ],
)
def test_orders_have_the_titles_of_their_runs(run: str, titles: list[str], names: list[str]) -> None:
    result = Result(run, ranked("abc"), ranked("abc"), np.full((3, 3), 0.5), "pointwise/a")
    html = render_result(result)
    assert Page(html).texts["h3"] == titles
    assert "comes first, as in stage 1" in html
    assert [name for name, _ in agreements(result, np.full((3, 3), 0.5))] == names


def test_a_single_order_has_no_moves_and_no_matrix() -> None:
    page = Page(render_result(Result(RUN, ranked("ab", [0.25, -1.5]))))
    assert page.texts["label"] == ["a", "b"]
    assert page.texts["score"] == ["0.25", "\N{MINUS SIGN}1.50"]
    assert page.texts["h3"] == [RUN]
    assert not {"path", "svg", "table"} & set(page.tags)


def test_scores_that_differ_little_are_shown_with_more_digits() -> None:
    assert Page(render_result(Result(RUN, ranked("ab", [0.0312, 0.0309])))).texts["score"] == ["0.0312", "0.0309"]


def test_bars_of_labels_with_probabilities_are_as_long_as_these() -> None:
    sure, unsure = RankedLabel("a", 0.168, 0.75), RankedLabel("b", 0.156, 0.5)
    html = render_result(Result(RUN, [sure, unsure], ranked("ba", [0.4, 0.1])))
    assert re.findall(r"width: ([\d.]+)%", html) == ["100.0", "2.0", "75.0", "50.0"]
    assert [text.replace("\xa0", " ") for text in Page(html).texts["score"]] == ["0.400", "0.100", "75 %", "50 %"]
    assert "a: score 0.1680, probability 75 %" in html
    assert "The other bars range from" in html
    both = render_result(Result(RUN, [sure, unsure], [unsure, sure]))
    assert "can be compared between lists and clips." in both
    assert "range from" not in both


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_bars_are_as_long_as_scores_are_high(scores: list[float]) -> None:
    bars = bar_lengths(np.array(scores))
    assert bars.max() == pytest.approx(100)
    assert bars.min() >= 2
    assert all(bars[i] <= bars[j] for i in range(len(scores)) for j in range(len(scores)) if scores[i] <= scores[j])


def test_the_matrix_shows_the_probability_that_the_row_comes_before_the_column() -> None:
    preferences = np.array([[0.5, 0.996, 0.2], [0.004, 0.5, 0.5], [0.8, 0.5, 0.5]])
    cells = matrix_cells(preferences)
    assert [[cell and cell.percent for cell in row] for row in cells] == [
        [None, 100, 20],
        [0, None, 50],
        [80, 50, None],
    ]
    sure, against, even = cells[0][1], cells[0][2], cells[1][2]
    assert sure is not None
    assert against is not None
    assert even is not None
    assert (sure.tone, sure.light, against.tone, against.light, even.alpha) == ("ahead", True, "behind", False, 0)
    html = render_result(Result(RUN, ranked("abc"), None, preferences))
    assert 'title="a before c: 20 %"' in html
    assert 'title="c before a: 80 %"' in html


def test_agreement_counts_the_pairs_that_an_order_puts_as_the_reward_model_would() -> None:
    preferences = np.array([[0.5, 0.9, 0.9], [0.1, 0.5, 0.4], [0.1, 0.6, 0.5]])
    result = Result(RUN, ranked("abc"), ranked("cba"), start="pointwise/a")
    shares = dict(agreements(result, preferences))
    assert shares == pytest.approx({"stage 1": 1 / 3, "stage 3": 2 / 3})
    assert agreements(Result(RUN, ranked("abc")), np.full((3, 3), 0.5)) == [("this order", 0.5)]


def test_of_many_labels_the_matrix_shows_the_first() -> None:
    labels = [f"label {number}" for number in range(40)]
    page = Page(render_result(Result(RUN, ranked(labels), None, np.full((MATRIX_LABELS, MATRIX_LABELS), 0.5))))
    assert page.texts["row"] == labels[:MATRIX_LABELS]
    assert len(page.texts["label"]) == 40
    assert any(f"The first {MATRIX_LABELS} of 40 labels" in text for text in page.texts["note"])


def test_ordinals() -> None:
    assert [ordinal(rank) for rank in (1, 2, 3, 4, 11, 12, 13, 21, 102, 111)] == (
        "1st 2nd 3rd 4th 11th 12th 13th 21st 102nd 111th".split()
    )


def test_a_message_is_text_and_shows_only_the_names_of_uploads() -> None:
    html = message_html("/up/x/1/a.png: is none of\n  <b>these</b>", ["/up/x/1/a.png"])
    assert html == "a.png: is none of<br>  &lt;b&gt;these&lt;/b&gt;"


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=re.escape("pip install '.[demo]'")):
        import_gradio()


def test_an_address_in_use_is_reported_before_anything_is_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UserError, match=r"--port .* give others"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="cannot be used"):
        listen("127.0.0.1", 70000)


def test_examples_are_the_first_test_clips_whose_frames_are_at_hand(tmp_path: Path) -> None:
    run, data = tmp_path / "run", tmp_path / "data"
    run.mkdir()
    config = load_config(REPOSITORY / "configs" / "mini" / "ppo.yaml", "ppo", [f"data.root={data}"])
    (run / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    assert find_examples(run) == []
    long = "a story of many words " * 9
    clips = [
        Clip("0", ("x",), images=("gone.png",)),
        Clip("1", ("x", "y, z"), description=long, images=("a.png",)),
        Clip("2", ("x",), images=("text.png",)),
        Clip("3", ("x",)),
        *(Clip(f"clip-{number}", ("x",), images=("a.png", "a.png")) for number in range(4, 9)),
    ]
    write_clips(data / annotations.TEST, clips)
    Image.new("RGB", (8, 8)).save(data / "a.png")
    (data / "text.png").write_text("no image", encoding="utf-8")
    found = find_examples(run)
    assert [example.title for example in found][1:] == ["clip-4", "clip-5", "clip-6"]
    assert found[0].title.startswith("a story of many words a story")
    assert len(found[0].title) < 70
    assert (found[0].labels, found[0].description) == (("x", "y, z"), long)
    assert found[1].frames == ((data / "a.png").resolve(),) * 2


@contextmanager
def running_demo(folder: Path, uploads: Path) -> Iterator[str]:
    """Run the command in a folder and yield the page's address; Ctrl-C must end it quietly."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "TMPDIR": str(uploads), "CUDA_VISIBLE_DEVICES": ""}
    # A proxy, as on clusters, must not be used for this machine.
    environment |= {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "lr2ppo", "demo", "ppo/tiny", "--port", str(port)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert f"the demo of ppo/tiny is at http://127.0.0.1:{port}/ " in line, process.communicate()
            yield f"http://127.0.0.1:{port}/"
            process.send_signal(signal.SIGINT)
            printed = process.communicate(timeout=20)
            assert (process.returncode, *printed) == (0, "", "")
        finally:
            process.kill()


@pytest.mark.browser
def test_two_images_and_typed_labels_become_an_order_on_the_page(workspace: Path, tmp_path: Path) -> None:
    uploads = tmp_path / "uploads"
    uploads.mkdir()
    frames = sorted((workspace / "data" / "frames").iterdir())
    labels = ["boat", "<script>alert(1)</script>", "car"]
    with running_demo(workspace, uploads) as address, open_browser(tmp_path / "profile") as chrome:
        wait = WebDriverWait(chrome, 60, ignored_exceptions=[StaleElementReferenceException])

        def has(where: str, texts: Sequence[str]) -> None:
            wait.until(lambda _: sorted(texts_of(chrome, where)) == sorted(texts), f"{where} is not {texts}")

        def act(where: str, action: Callable[[WebElement], None]) -> None:
            def acted(_: WebDriver) -> bool:
                action(chrome.find_element(By.CSS_SELECTOR, where))
                return True

            wait.until(acted)

        def click(where: str) -> None:
            act(where, lambda element: element.click())

        def type_into(where: str, *keys: str) -> None:
            act(where, lambda element: element.send_keys(*keys))

        chrome.get(address)
        wait.until(element_to_be_clickable((By.ID, "rank")))
        click("#rank")
        wait.until(lambda _: "There are no frames yet" in " ".join(texts_of(chrome, ".toast-body")))
        type_into("#frames input[type=file]", "\n".join(map(str, frames)))
        wait.until(lambda _: len(texts_of(chrome, "#frames .thumbnail-item")) == 2)
        type_into("#labels textarea", "\n".join([*labels, labels[1]]))
        click("#rank")
        has(".after .label", labels)
        has(".before .label", labels)
        wait.until(lambda _: f"ranked once: {labels[1]}." in " ".join(texts_of(chrome, ".toast-body")))
        order = [label.label for label in LabelRanker.load("ppo/tiny", logs=workspace / "logs").rank(frames, labels)]
        assert texts_of(chrome, ".after .label") == texts_of(chrome, ".matrix tbody th") == order
        assert chrome.find_elements(By.CSS_SELECTOR, ".result script") == []
        chrome.save_screenshot(str(tmp_path / "demo.png"))
        # An example fills the fields and is ranked.
        click("#examples button")
        has(".after .label", ["sun", "sea, sand"])
        typed = chrome.find_element(By.CSS_SELECTOR, "#labels textarea").get_attribute("value")
        assert typed == 'sun\n"sea, sand"'
        # Enter in the description and Shift+Enter in the labels rank as well.
        type_into("#labels textarea", "\ncar", Keys.SHIFT, Keys.ENTER)
        has(".after .label", ["sun", "sea, sand", "car"])
        type_into("#labels textarea", "\nboat")
        type_into("#description textarea", " out", Keys.ENTER)
        has(".after .label", ["sun", "sea, sand", "car", "boat"])
        asked = chrome.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [url for url in asked if not url.startswith((address, "data:"))] == []
        assert console_errors(chrome) == []
    assert list(uploads.iterdir()) == []
