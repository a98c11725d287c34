"""What commands print shows hostile names, and does not obey them."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr2ppo.cli import main
from lr2ppo.terminal import printable

# Spaces of all widths, and marks that join or separate letters.
SEEN = {chr(point) for point in range(0x3001) if unicodedata.category(chr(point)) == "Zs"} | {"\u200c", "\u200d"}


@given(st.text())
def test_no_text_controls_a_terminal_and_plain_text_stays(text: str) -> None:
    shown = printable(text)
    assert all(each.isprintable() or each == "\n" or each in SEEN for each in shown)
    assert printable(shown) == shown
    shown.encode()


def test_wide_spaces_and_joined_letters_are_shown_as_they_are() -> None:
    for text in ("a\u00a0b\u3000c", "\u0646\u0627\u0645\u0647\u200c\u0627\u06cc", "\U0001f468\u200d\U0001f469"):
        assert printable(text) == text
    assert printable("\u202e\u2028\x1b[2J") == r"\u202e\u2028\x1b[2J"


def test_the_name_of_a_run_is_listed_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "pointwise" / "a\x1b]0;owned\x07\x9b2J"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("stage: pointwise\n", encoding="utf-8")
    main(["runs", "--logs", str(tmp_path)])
    assert r"a\x1b]0;owned\x07\x9b2J" in capsys.readouterr().out
