"""What commands print shows hostile names, and does not obey them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lr2ppo.cli import main
from lr2ppo.terminal import printable


@given(st.text())
def test_no_text_controls_a_terminal_and_plain_text_stays(text: str) -> None:
    shown = printable(text)
    assert all(each.isprintable() or each == "\n" for each in shown)
    assert printable(shown) == shown
    shown.encode()


def test_the_name_of_a_run_is_listed_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "pointwise" / "a\x1b]0;owned\x07\x9b2J"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("stage: pointwise\n", encoding="utf-8")
    main(["runs", "--logs", str(tmp_path)])
    assert r"a\x1b]0;owned\x07\x9b2J" in capsys.readouterr().out
