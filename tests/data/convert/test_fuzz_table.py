"""Broken tables are refused with one message, or become a data folder that can be read."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lr2ppo.data import annotations
from lr2ppo.data.annotations import read_clips
from lr2ppo.data.convert.folder import write_folder
from tests.helpers.fuzz import Case, damaged, fuzzed, may_refuse, mutated

ROWS: list[dict[str, Any]] = [
    {
        "clip": clip,
        "label": label,
        "grade": grade,
        "description": "a day, out",
        "frames": "a.png;b.png",
        "group": clip,
    }
    for clip in ("one", "two", "three", "tt01/four")
    for grade, label in enumerate(("car", "sea, sand", "naïve sky"))
]
CLIPS: list[dict[str, Any]] = [
    {"clip": clip, "frames": ["a.png"], "labels": [{"label": "car", "grade": 1}, {"label": "sky", "grade": 0}]}
    for clip in ("one", "two", "three")
]
TABLE = "\n".join([",".join(ROWS[0]), *(",".join(f'"{value}"' for value in row.values()) for row in ROWS)])


def convert(table: Path) -> None:
    out = table.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    for name in ("a.png", "b.png"):
        if not table.with_name(name).exists():
            Image.new("RGB", (20, 16)).save(table.with_name(name))
    with may_refuse(table, out):
        write_folder(
            table, out, preferences=None, names={}, frames_root=None, frames_per_video=2, validation_share=0.3,
            test_share=0.3, pair_share=None, seed=7,
        )  # fmt: skip
        for file in (annotations.VALIDATION, annotations.TEST):
            read_clips(out / file, "grades")
        assert all(path.resolve().is_relative_to(out.resolve()) for path in out.rglob("*"))


def any_csv(folder: Path, _: Path, data: st.DataObject) -> None:
    (folder / "table.csv").write_bytes(data.draw(damaged(TABLE.encode()) | st.binary(max_size=40)))
    convert(folder / "table.csv")


def any_cells(folder: Path, _: Path, data: st.DataObject) -> None:
    rows: Any = data.draw(mutated(ROWS))
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    with (folder / "table.csv").open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        csv.writer(file).writerows([list(ROWS[0]), *(list(row.values()) for row in rows)])
    convert(folder / "table.csv")


def any_lines(folder: Path, _: Path, data: st.DataObject) -> None:
    rows: Any = data.draw(mutated(data.draw(st.sampled_from([ROWS, CLIPS]))))
    text = "\n".join(map(json.dumps, rows if isinstance(rows, list) else [rows]))
    (folder / "table.jsonl").write_bytes(data.draw(st.just(text.encode()) | damaged(f"{text}\n".encode())))
    convert(folder / "table.jsonl")


CASES: dict[str, Case] = {"table bytes": any_csv, "table cells": any_cells, "table lines": any_lines}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tables_of_any_content(tmp_path: Path, case: Case) -> None:
    @fuzzed(150)
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        case(tmp_path, tmp_path, data)

    check()
