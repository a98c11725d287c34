"""Convert a table into a data folder: messages about faulty tables, and splits of valid ones."""

import csv
import errno
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from lr2ppo.cli import main
from lr2ppo.data import annotations
from lr2ppo.data.annotations import Clip, Need, count_pairs, read_clips
from lr2ppo.data.convert.frame_files import folder_name
from lr2ppo.data.convert.splits import draw_pairs, draw_splits
from lr2ppo.data.convert.table import TableClip
from lr2ppo.data.validate import NEEDS
from lr2ppo.errors import UserError
from tests.conftest import REPOSITORY
from tests.helpers.fuzz import run_apart

HEADER = ["clip", "frames", "description", "label", "grade"]
ROWS = [
    [f"c{clip}", f"pictures/{clip}.png", "a boat", label, str(grade)]
    for clip in range(10)
    for label, grade in (("boat", 2), ("car", clip % 2), ("sea", 0))
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the frames that `ROWS` names."""
    for clip in range(10):
        write_picture(tmp_path / "pictures" / f"{clip}.png", shade=20 * clip)
    return tmp_path


def write_picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (shade, shade, shade)).save(path)


def write_table(
    path: Path, rows: list[list[str]], header: list[str] = HEADER, delimiter: str = ",", start: str = ""
) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(start)
        csv.writer(file, delimiter=delimiter).writerows([header, *rows])
    return path


def run(*arguments: str | Path) -> None:
    main(["convert", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def read_folder(out: Path) -> dict[str, list[Clip]]:
    return {name: read_clips(out / name, need) for name, need in NEEDS.items()}


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


@st.composite
def tables(draw: st.DrawFn) -> list[TableClip]:
    """Clips in a few groups or none, some without grades and, in some tables, some in a source domain."""
    has_source, has_groups = draw(st.booleans()), draw(st.booleans())
    clips = []
    for number in range(draw(st.integers(1, 40))):
        labels = draw(st.integers(1, 6))
        is_source = has_source and draw(st.booleans())
        about = {"domain": "source" if is_source else "target"} if has_source else {}
        if has_groups:
            about["group"] = draw(st.sampled_from(["", *"abcdefghc0"]))
        grades: list[int | None] = [None] * labels
        if is_source or draw(st.integers(0, 3)):
            grades = list(draw(st.lists(st.integers(0, 2), min_size=labels, max_size=labels)))
        clips.append(TableClip(f"c{number}", number, [f"label {i}" for i in range(labels)], grades, about))
    return clips


@settings(deadline=None, max_examples=100)
@given(clips=tables(), validation=st.floats(0, 1), test=st.floats(0, 1), seed=st.integers(0, 9))
def test_no_group_is_in_two_splits_and_no_file_is_empty(
    clips: list[TableClip], validation: float, test: float, seed: int
) -> None:
    try:
        splits = draw_splits(clips, validation, test, np.random.default_rng(seed))
    except UserError:
        return
    trained_on = {clip.id: clip for clip in [*splits.source, *splits.train]}
    parts = [list(trained_on.values()), splits.validation, splits.test]
    units = [{clip.unit for clip in part} for part in parts]
    assert not units[0] & units[1]
    assert not units[0] & units[2]
    assert not units[1] & units[2]
    every_id = sorted(clip.id for part in [*parts, splits.left_out] for clip in part)
    assert every_id == sorted(clip.id for clip in clips), "each clip once"
    assert splits.source
    assert splits.train
    for clip in [*splits.source, *splits.validation, *splits.test]:
        assert clip.is_graded
    assert not any(clip.is_source for clip in [*splits.train, *splits.validation, *splits.test])
    assert all(clip.unit in units[1] | units[2] for clip in splits.left_out)
    again = draw_splits(clips, validation, test, np.random.default_rng(seed))
    assert again == splits


@given(clips=st.integers(3, 60))
def test_three_graded_clips_are_enough(clips: int) -> None:
    table = [TableClip(f"c{number}", number, ["x", "y"], [0, 1]) for number in range(clips)]
    splits = draw_splits(table, 0.1, 0.2, np.random.default_rng(0))
    assert [len(splits.validation), len(splits.test)] == [max(1, round(0.1 * clips)), max(1, round(0.2 * clips))]
    assert len(splits.source) == len(splits.train) == clips - len(splits.validation) - len(splits.test)


@settings(deadline=None, max_examples=50)
@given(clips=tables(), share=st.floats(0, 1), seed=st.integers(0, 9))
def test_the_better_label_of_a_drawn_pair_has_the_higher_grade(clips: list[TableClip], share: float, seed: int) -> None:
    possible = sum(
        a > b
        for clip in clips
        if clip.is_graded
        for a in clip.grades
        for b in clip.grades
        if a is not None and b is not None
    )
    try:
        pairs = draw_pairs(clips, share, np.random.default_rng(seed))
    except UserError:
        assert possible == 0 or share == 0
        return
    assert sum(map(len, pairs)) == max(1, round(share * possible))
    for clip, own in zip(clips, pairs, strict=True):
        assert len({tuple(pair) for pair in own.tolist()}) == len(own), "no pair twice"
        for better, worse in own.tolist():
            high, low = clip.grades[better], clip.grades[worse]
            assert high is not None
            assert low is not None
            assert high > low


def test_preferences_are_kept_even_if_the_grades_contradict_them() -> None:
    preferred = TableClip("a", 1, ["x", "y", "z"], [0, 1, 2], preferences=[(0, 2), (2, 0), (0, 2)])
    graded = TableClip("b", 2, ["x", "y"], [0, 1])
    only_preferences = draw_pairs([preferred, graded], 0.0, np.random.default_rng(0))
    assert [own.tolist() for own in only_preferences] == [[[0, 2], [2, 0], [0, 2]], []]
    both = draw_pairs([preferred, graded], 1.0, np.random.default_rng(0))
    assert [own.tolist() for own in both] == [[[0, 2], [2, 0], [0, 2]], [[1, 0]]]
    more = TableClip("b", 2, ["x", "y", "z", "w"], [0, 0, 1, 1])
    drawn = [draw_pairs([preferred, more], 0.5, np.random.default_rng(seed)) for seed in range(10)]
    assert {len(own) for _, own in drawn} == {2}, "a share of the pairs of clips without preferences"


def test_without_a_domain_the_training_clips_serve_all_three_stages(folder: Path) -> None:
    run(write_table(folder / "table.csv", ROWS), "--out", folder / "out", "--pair-share", "1")
    files = read_folder(folder / "out")
    sizes = {name: len(clips) for name, clips in files.items()}
    assert list(sizes.values()) == [7, 7, 7, 1, 2]
    source, pairs, target = (files[name] for name in list(NEEDS)[:3])
    assert [clip.id for clip in source] == [clip.id for clip in pairs] == [clip.id for clip in target]
    assert all(clip.grades is not None for clip in source)
    assert all(clip.grades is None for clip in target)
    for clip in pairs:
        number = int(clip.id[1:])
        assert clip.pairs.tolist() == ([[0, 1], [0, 2], [1, 2]] if number % 2 else [[0, 1], [0, 2]])


def test_with_domains_the_source_is_only_for_stage_1_and_the_target_is_split(folder: Path) -> None:
    rows = [[*row, "source" if int(row[0][1:]) < 3 else "target"] for row in ROWS]
    # Clips for stage 3 need no grades.
    rows = [[*row[:4], "" if row[0] in ("c8", "c9") else row[4], row[5]] for row in rows]
    run(write_table(folder / "table.csv", rows, [*HEADER, "domain"]), "--out", folder / "out")
    files = read_folder(folder / "out")
    assert [clip.id for clip in files[annotations.SOURCE_TRAIN]] == ["c0", "c1", "c2"]
    target = {clip.id for clip in files[annotations.TARGET_TRAIN]}
    held_out = {clip.id for name in (annotations.VALIDATION, annotations.TEST) for clip in files[name]}
    assert {"c8", "c9"} <= target
    assert target | held_out == {f"c{number}" for number in range(3, 10)}
    assert not target & held_out


def test_the_same_seed_writes_the_same_bytes(folder: Path) -> None:
    table = write_table(folder / "table.csv", ROWS)
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        run(table, "--out", folder / name, "--seed", str(seed))
    assert content(folder / "one") == content(folder / "same")
    assert content(folder / "one") != content(folder / "other")


def as_json_lines(rows: list[list[str]]) -> str:
    return "\n".join(json.dumps(dict(zip(HEADER, row, strict=True)) | {"grade": int(row[4])}) for row in rows)


def as_json_clips(rows: list[list[str]]) -> str:
    clips: dict[str, dict[str, Any]] = {}
    for name, frames, description, label, grade in rows:
        clip = clips.setdefault(name, {"clip": name, "frames": [frames], "description": description, "labels": []})
        clip["labels"].append({"label": label, "grade": int(grade)})
    return "\n".join(map(json.dumps, clips.values())) + "\n"


def test_every_dialect_of_a_table_gives_the_same_folder(folder: Path) -> None:
    run(write_table(folder / "plain.csv", ROWS), "--out", folder / "plain")
    capitals = [" Clip ", "FRAMES", "Description", "label", "Grade"]
    write_table(folder / "excel.csv", [*ROWS, ["", "", "", "", ""]], capitals, ";", start="\ufeff")
    # A clip's values may be in one of its rows only, and columns may have any order.
    sparse = [row if row[3] == "boat" else [row[0], "", "", *row[3:]] for row in ROWS]
    write_table(folder / "tabs.csv", [row[::-1] for row in sparse], HEADER[::-1], "\t")
    (folder / "rows.jsonl").write_text(as_json_lines(ROWS), encoding="utf-8")
    (folder / "clips.jsonl").write_text(as_json_clips(ROWS), encoding="utf-8")
    for name in ("excel.csv", "tabs.csv", "rows.jsonl", "clips.jsonl"):
        run(folder / name, "--out", folder / f"{name}-out")
        assert content(folder / f"{name}-out") == content(folder / "plain"), name
    other = ["video_id", "frames", "description", "tag", "grade"]
    run(write_table(folder / "x.csv", ROWS, other), "--out", folder / "x", "--columns", "clip=video_id,label=Tag")
    assert content(folder / "x") == content(folder / "plain")


def test_a_converted_folder_lacks_only_its_features(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(write_table(folder / "table.csv", ROWS), "--out", folder / "out")
    assert "lr2ppo pretrain --data" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["check", str(folder / "out")])
    printed = capsys.readouterr()
    assert "1 fault found" in printed.err
    assert "no such feature file" in printed.err
    assert "warning" not in printed.out


def test_all_faults_are_reported_by_row_and_nothing_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pictures" / "text.png").write_text("no image", encoding="utf-8")
    rows = [
        ["a", "pictures/0.png", "a boat", "boat", "11"],
        ["a", "", "a ship", "boat", "1"],
        ["", "pictures/0.png", "a boat", "boat", "1"],
        ["b", "pictures/gone.png", "a boat", "boat", "1"],
        ["c", "pictures/text.png", "a boat", "boat", "1"],
        ["c", "", "", "car", ""],
        ["d", "", "a boat", "boat", "1", "more"],
    ]
    table = write_table(folder / "table.csv", rows)
    preferences = write_table(
        folder / "said.csv", [["z", "boat", "car"], ["c", "boat", "tree"]], ["clip", "better", "worse"]
    )
    message = refused(capsys, table, "--out", folder / "out", "--preferences", preferences)
    for fault in (
        "row 8: found 6 cells, wanted 5",
        "row 2: grade: found '11', wanted a whole number from 0 to 10",
        "row 3: clip a has the label 'boat' in row 2 already",
        "row 3: clip a has the description 'a ship', in row 2 'a boat'",
        "row 4: clip: is empty",
        "row 6: clip c has 1 of 2 labels without a grade",
        "said.csv row 2: clip 'z' is not in the table",
        "said.csv row 3: clip c has no label 'tree'",
        "row 5: clip b: no frames",
        "text.png is not an image of the formats",
    ):
        assert fault in message
    assert sorted(path.name for path in folder.iterdir()) == ["pictures", "said.csv", "table.csv"]


@pytest.mark.parametrize(
    ("header", "rows", "more", "expected"),
    [
        (["id", "frames", "tag"], [["a", "b", "c"]], (), "found no column clip, label; the table has id, frames, tag"),
        (["clip", "label"], [["a", "b"]], (), "found no column frames or video; the table has clip, label"),
        (HEADER, [], (), "found no rows below the header"),
        (HEADER, ROWS[:6], (), "found 2 clips (or groups of them) with grades, wanted at least 3"),
        (HEADER, [[*row[:4], ""] for row in ROWS], (), "found 0 clips (or groups of them) with grades"),
        (HEADER, ROWS, ("--test-share", "0.9", "--validation-share", "0.1"), "wanted at least 11: 1 for validation"),
        (HEADER, [[*row[:4], "1"] for row in ROWS], (), "no clip drawn for validation has labels of different grades"),
        (HEADER, ROWS, ("--pair-share", "0"), "no training clip has a pair of labels of different grades"),
        ([*HEADER, "domain"], [[*row, "target"] for row in ROWS], (), "every clip is in the target domain"),
        ([*HEADER, "domain"], [[*row, "here"] for row in ROWS], (), "domain: found 'here', wanted source or target"),
        ([*HEADER, "video"], [[*row, "a.mp4"] for row in ROWS], (), "has both frames and a video"),
        ([*HEADER, "label"], [[*row, "x"] for row in ROWS], (), "has two columns label"),
        (HEADER, ROWS, ("--columns", "label=tag"), "found no column tag, which --columns names; the table has clip"),
        (HEADER, ROWS, ("--columns", "name=tag"), "--columns: found 'name=tag', wanted COLUMN=NAME"),
        (
            HEADER,
            [["a//b", *row[1:]] for row in ROWS[:3]],
            (),
            "clip a//b has an id that cannot be used: found 'a//b', wanted",
        ),
        (HEADER, [["c/img_emb", *row[1:]] for row in ROWS[:3]], (), "found 'c/img_emb', wanted no part img_emb"),
        (HEADER, [["c" * 1001, *row[1:]] for row in ROWS[:3]], (), "of 1,001 characters, wanted at most 1,000"),
        (
            [*HEADER[:2], "descriptions", *HEADER[3:]],
            ROWS,
            (),
            "found a column descriptions, did you mean description?",
        ),
        ([*HEADER, "Groups"], [[*row, "x"] for row in ROWS], (), "found a column groups, did you mean group?"),
        (HEADER, [[*row[:4], "1_0"] for row in ROWS], (), "row 2: grade: found '1_0', wanted a whole number"),
        (
            HEADER,
            [[*ROWS[0][:3], label, "1"] for label in ("caf\u00e9", "cafe\u0301")],
            (),
            "row 3: clip c0 has the label 'cafe\\u0301', which looks like 'caf\\xe9' in row 2, but is",
        ),
        (
            HEADER,
            [[clip, *ROWS[0][1:]] for clip in ("the boat", "the  boat")],
            (),
            "row 3: clip 'the  boat' looks like clip 'the boat', but is spelled otherwise",
        ),
        (HEADER, [[*ROWS[0][:3], "\u200b", "1"]], (), "row 2: label: is empty"),
        (HEADER, [[*ROWS[0][:3], "bo\0at", "1"]], (), "row 2: label: found 'bo\\x00at', which holds an invalid"),
    ],
)
def test_the_message_about_an_unusable_table_tells_what_to_do(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    header: list[str],
    rows: list[list[str]],
    more: tuple[str, ...],
    expected: str,
) -> None:
    assert expected in refused(capsys, write_table(folder / "table.csv", rows, header), "--out", folder / "out", *more)
    assert not (folder / "out").exists()


def test_a_file_that_is_no_table_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = folder / "table.csv"
    assert "cannot be read" in refused(capsys, table, "--out", folder / "out")
    table.write_bytes("clip,label\na,b\na,café\n".encode("latin-1"))
    assert "line 3 is not UTF-8 text; save it as 'CSV UTF-8'" in refused(capsys, table, "--out", folder / "out")
    table.write_text('clip,label\na,"b\n', encoding="utf-8")
    assert "is a double quote not closed?" in refused(capsys, table, "--out", folder / "out")
    table.unlink()
    os.mkfifo(table)

    def check() -> None:
        # Nobody writes to the pipe: reading from it would wait for ever.
        signal.alarm(20)
        assert "is a named pipe, wanted a regular file" in refused(capsys, table, "--out", folder / "out")

    run_apart(check)
    (folder / "t.jsonl").write_text('{"clip": "a", "label": "b", "frames": {}}\n[]\n', encoding="utf-8")
    message = refused(capsys, folder / "t.jsonl", "--out", folder / "out")
    assert "row 1: frames: found" in message
    assert "row 2: wanted one JSON object per line" in message


def test_a_line_that_lacks_a_key_is_reported_by_its_row(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [*as_json_lines(ROWS).splitlines(), '{"label": "car"}', '{"clip": "c0"}']
    (folder / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    said = '{"clip": "c0", "better": "boat", "worse": "sea"}\n{"clip": "c1", "better": "boat"}\n{"better": "boat"}\n'
    (folder / "said.jsonl").write_text(said, encoding="utf-8")
    message = refused(capsys, folder / "t.jsonl", "--out", folder / "out", "--preferences", folder / "said.jsonl")
    for fault in (
        f"row {len(lines) - 1}: clip: is empty",
        f"row {len(lines)}: label: is empty",
        "said.jsonl row 2: clip c1 has no label ''",
        "said.jsonl row 3: clip '' is not in the table",
    ):
        assert fault in message


def test_a_line_of_a_clip_without_labels_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = as_json_clips(ROWS).splitlines()
    lines += ['{"clip": "c10", "frames": ["pictures/0.png"], "labels": []}', '{"clip": "c11", "clip": "c12"}', "{"]
    (folder / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    message = refused(capsys, folder / "t.jsonl", "--out", folder / "out")
    assert "row 11: labels: found none, wanted at least one" in message
    assert "row 12: is not JSON: found the key 'clip' twice in one object" in message
    assert "row 13: is not JSON: " in message


def test_columns_that_are_not_read_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(folder / "table.csv", [[*row, "x", "y"] for row in ROWS], [*HEADER, "Film", "note"])
    run(table, "--out", folder / "out")
    assert "note: columns of the table that are not read: film, note" in capsys.readouterr().out


def test_a_group_is_one_however_its_name_is_spelled() -> None:
    spellings = ["caf\u00e9 1", "cafe\u0301 1", "caf\u00e9  1", "caf\u00e9\u200b 1"]
    clips = [TableClip(name, 1, ["x"], [0], {"group": group}) for name, group in zip("abcd", spellings, strict=True)]
    assert len({clip.unit for clip in clips}) == 1


def test_a_list_is_a_fault_in_every_column_but_frames(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = {"frames": ["pictures/0.png"], "seen": ["is", "not", "read"]}
    lines: list[dict[str, object]] = [
        {"clip": "c0", "label": ["boat", "car"], "description": ["three"]},
        {"clip": "c1", "label": "boat", "description": ["one", "two"]},
        {"clip": "c2", "labels": [{"label": "boat", "grade": ["1"]}]},
        {"clip": "c3", "labels": [["boat", "car"]]},
        {"clip": ["c", "4"], "label": "boat"},
        {"clip": "c5", "label": "boat", "group": []},
    ]
    (folder / "t.jsonl").write_text("\n".join(json.dumps(line | frames) for line in lines), encoding="utf-8")
    message = refused(capsys, folder / "t.jsonl", "--out", folder / "out")
    for fault in (
        "row 1: label: found ['boat', 'car'], wanted a string, did you mean labels?\n",
        "row 1: description: found ['three'], wanted a string\n",
        "row 2: description: found ['one', 'two'], wanted a string\n",
        "row 3: grade: found ['1'], wanted a string\n",
        "row 4: label: found ['boat', 'car'], wanted a string\n",
        "row 5: clip: found ['c', '4'], wanted a string\n",
        "row 6: group: found [], wanted a string\n",
    ):
        assert fault in message
    assert "frames" not in message
    assert "seen" not in message


def test_plain_labels_of_a_whole_clip_are_read_under_another_name_of_the_column(folder: Path) -> None:
    plain = json.dumps({"clip": "plain", "frames": ["pictures/0.png"], "labels": ["boat", "car"]})
    graded = as_json_clips(ROWS).replace('"label"', '"tag"')
    (folder / "t.jsonl").write_text(f"{graded}{plain}", encoding="utf-8")
    run(folder / "t.jsonl", "--out", folder / "out", "--columns", "label=tag")
    clips = {clip.id: clip.labels for clip in read_clips(folder / "out" / annotations.TARGET_TRAIN)}
    assert clips["plain"] == ("boat", "car")


def test_the_pairs_of_a_clip_of_very_many_labels_are_not_listed() -> None:
    big = TableClip("big", 1, [str(label) for label in range(200_000)], [label % 3 for label in range(200_000)])
    (own,) = draw_pairs([big], 1e-7, np.random.default_rng(0))
    assert len(own) == round(1e-7 * count_pairs(np.array(big.grades))) > 1000
    with pytest.raises(
        UserError, match=r"found 13,333,.* pairs .*wanted at most 4,000,000; lower --pair-share to 0\.0003"
    ):
        draw_pairs([big], 0.1, np.random.default_rng(0))


@settings(deadline=None, max_examples=50)
@given(clips=tables(), share=st.floats(0.1, 1), seed=st.integers(0, 9))
def test_a_seed_draws_the_pairs_that_it_has_always_drawn(clips: list[TableClip], share: float, seed: int) -> None:
    """The plain way: list all pairs, shuffle, take the first."""
    every = [
        (number, better, worse)
        for number, clip in enumerate(clips)
        if clip.is_graded
        for better, high in enumerate(clip.grades)
        for worse, low in enumerate(clip.grades)
        if high is not None and low is not None and high > low
    ]
    if every:
        taken = np.random.default_rng(seed).permutation(len(every))[: max(1, round(share * len(every)))]
        pairs = draw_pairs(clips, share, np.random.default_rng(seed))
        found = [(number, *pair) for number, own in enumerate(pairs) for pair in own.tolist()]
        assert found == [every[place] for place in sorted(taken)]


def test_a_folder_that_is_not_empty_is_not_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(folder / "pictures")
    table = write_table(folder / "table.csv", ROWS)
    assert "exists and is not empty" in refused(capsys, table, "--out", folder / "pictures")
    assert content(folder / "pictures") == before


def test_frames_are_found_by_file_folder_and_pattern_in_the_order_of_their_numbers(folder: Path) -> None:
    for number in (0, 2, 10):
        write_picture(folder / "shots" / f"shot-{number}.png", shade=number)
    (folder / "shots" / "notes.txt").write_text("", encoding="utf-8")
    names = {"c0": "shots", "c1": "shots/shot-*.png", "c2": f"shots/shot-2.png; {folder}/shots/shot-0.png"}
    rows = [[row[0], names.get(row[0], row[1]), *row[2:]] for row in ROWS]
    run(write_table(folder / "table.csv", rows), "--out", folder / "out")
    clips = {clip.id: clip for files in read_folder(folder / "out").values() for clip in files}
    shades = {
        name: [Image.open(folder / "out" / image).getpixel((0, 0)) for image in clips[name].images] for name in names
    }
    wanted = {"c0": (0, 2, 10), "c1": (0, 2, 10), "c2": (2, 0)}
    assert shades == {name: [(shade,) * 3 for shade in order] for name, order in wanted.items()}


@given(one=st.text(min_size=1), other=st.text(min_size=1))
@example(one="..", other=".")
def test_no_two_clips_share_a_folder_and_none_leaves_the_data(one: str, other: str) -> None:
    assert (folder_name(one) == folder_name(other)) == (one == other)
    assert Path(folder_name(one)).name == folder_name(one) not in ("", ".", "..")


def test_frames_of_a_video_are_written_into_the_data_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    av = pytest.importorskip("av")
    with av.open(str(folder / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(40):
            picture = Image.new("RGB", (64, 48), (6 * number,) * 3)
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode(None))
    rows = [[row[0], "film.mp4", *row[2:]] for row in ROWS]
    table = write_table(folder / "table.csv", rows, ["clip", "video", *HEADER[2:]])
    run(table, "--out", folder / "out", "--frames-per-video", "4")
    clip = read_clips(folder / "out" / annotations.TEST)[0]
    assert clip.filename == "film.mp4"
    shades = [np.asarray(Image.open(folder / "out" / image)).mean() for image in clip.images]
    assert shades == pytest.approx([6 * number for number in (0, 13, 26, 39)], abs=4)
    (folder / "film.mp4").write_bytes(b"no film")
    message = refused(capsys, table, "--out", folder / "again")
    assert "10 faults found" in message
    assert "film.mp4: is not a readable video" in message
    assert not [path for path in folder.iterdir() if "again" in path.name]


def test_groups_stay_together_and_the_clips_left_out_are_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = [f"film-{int(row[0][1:]) % 3}" for row in ROWS]
    ungraded = [
        [*row[:4], "" if row[0] in ("c0", "c1", "c2") else row[4], film] for row, film in zip(ROWS, films, strict=True)
    ]
    said = write_table(
        folder / "said.csv", [[f"c{clip}", "sea", "boat"] for clip in range(10)], ["clip", "better", "worse"]
    )
    table = write_table(folder / "table.csv", ungraded, [*HEADER, "film"])
    run(table, "--out", folder / "out", "--columns", "group=film", "--preferences", said)
    needs: list[tuple[str, Need]] = [
        (annotations.TARGET_TRAIN, "labels"),
        (annotations.VALIDATION, "grades"),
        (annotations.TEST, "grades"),
    ]
    films_of = [{int(clip.id[1:]) % 3 for clip in read_clips(folder / "out" / name, need)} for name, need in needs]
    assert sorted(map(len, films_of)) == [1, 1, 1]
    assert len(set.union(*films_of)) == 3
    pairs = read_clips(folder / "out" / annotations.TARGET_PAIRS, "pairs")
    assert all(clip.pairs.tolist() == [[2, 0]] for clip in pairs)
    printed = capsys.readouterr().out
    assert "left out: 2 clips" in printed
    assert f"not used: {10 - len(pairs)} preferences" in printed


def test_brackets_in_a_folder_are_no_pattern(folder: Path) -> None:
    inside = folder / "films [1]"
    inside.mkdir()
    (folder / "pictures").rename(inside / "pictures")
    for number in (2, 10):
        write_picture(inside / "shots[a]" / f"shot-{number}.png", shade=number)
    names = {
        "c0": "shots[a]/shot-*.png",
        "c1": f"{inside}/shots[a]/shot-*.png",
        "c2": "pictures/[12].png",
        "c3": "shots[[]a]/shot-2.png",
    }
    rows = [[row[0], names.get(row[0], row[1]), *row[2:]] for row in ROWS]
    run(write_table(inside / "table.csv", rows), "--out", folder / "out")
    run(write_table(folder / "table.csv", rows), "--out", folder / "again", "--frames-root", inside)
    assert content(folder / "out") == content(folder / "again")
    clips = {clip.id: clip for files in read_folder(folder / "out").values() for clip in files}
    found = {
        name: [Image.open(folder / "out" / image).getpixel((0, 0)) for image in clips[name].images] for name in names
    }
    wanted = {"c0": (2, 10), "c1": (2, 10), "c2": (20, 40), "c3": (2,)}
    assert found == {name: [(shade,) * 3 for shade in order] for name, order in wanted.items()}


def test_the_next_command_can_be_pasted_whatever_the_folder_is_called(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "it's mine; $(all) of it"
    run(write_table(folder / "table.csv", ROWS), "--out", out)
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("    lr2ppo")]
    assert shlex.split(command) == [
        *("lr2ppo", "pretrain", "--data", str(out)),
        *("--out", f"pretrained_models/{out.name}"),
    ]


def unusable(folder: Path) -> dict[str, tuple[list[str | Path], str]]:
    """Arguments of a conversion that can only fail, each with a part of the message."""
    table = write_table(folder / "table.csv", ROWS)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe.csv")
    os.mkfifo(folder / "pictures" / "pipe.png")
    piped = write_table(folder / "piped.csv", [[row[0], "pictures/pipe.png", *row[2:]] for row in ROWS])
    patterned = write_table(folder / "patterned.csv", [[row[0], "pictures/p*.png", *row[2:]] for row in ROWS])
    filmed = write_table(folder / "filmed.csv", [[row[0], "pictures/pipe.png", "boat", "2"] for row in ROWS[::3]])
    filmed.write_text(filmed.read_text("utf-8").replace("clip,frames,description,", "clip,video,"), encoding="utf-8")
    long = write_table(folder / "long.csv", [[row[0], "x" * 300, *row[2:]] for row in ROWS])
    out: list[str | Path] = ["--out", folder / "new" / "out"]
    return {
        "out is a file": ([table, "--out", table], "table.csv: exists and is no folder"),
        "out is a pipe": ([table, "--out", folder / "pipe.csv"], "pipe.csv: exists and is no folder"),
        "out is a loop": ([table, "--out", folder / "loop"], "loop: exists and is no folder"),
        "out is below a loop": ([table, "--out", folder / "loop" / "out"], "loop/out: Too many levels"),
        "out is below a file": ([table, "--out", table / "out"], "table.csv/out: Not a directory"),
        "out is too long": ([table, "--out", folder / ("x" * 300)], "xxx: File name too long"),
        "table is a folder": ([folder, *out], "cannot be read: is a folder, wanted a regular file"),
        "table is a pipe": ([folder / "pipe.csv", *out], "pipe.csv: cannot be read: is a named pipe"),
        "table is a loop": ([folder / "loop", *out], "loop: cannot be read: Too many levels"),
        "table is too long": ([folder / ("x" * 300), *out], "xxx: cannot be read: File name too long"),
        "preferences are a pipe": ([table, *out, "--preferences", folder / "pipe.csv"], "is a named pipe"),
        "root is a file": ([table, *out, "--frames-root", table], "--frames-root: found no folder"),
        "root is a pipe": ([table, *out, "--frames-root", folder / "pipe.csv"], "--frames-root: found no folder"),
        "root is a loop": ([table, *out, "--frames-root", folder / "loop"], "--frames-root: found no folder"),
        "root is too long": ([table, *out, "--frames-root", "x" * 300], "--frames-root: found no folder"),
        "a frame is a pipe": ([piped, *out], "row 2: clip c0: no frames"),
        "frames are pipes": ([patterned, *out], "row 2: clip c0: no frames"),
        "a video is a pipe": ([filmed, *out], "row 2: clip c0: no video"),
        "a frame is too long": ([long, *out], "row 2: clip c0: no frames"),
    }


CONVERTS_EACH = """
import json, sys
from lr2ppo.cli import main

for words in json.loads(sys.argv[1]):
    code = 0
    try:
        main(["convert", *words])
    except SystemExit as ended:
        code = ended.code
    print("ended with", code, file=sys.stderr)
"""


def test_what_cannot_be_converted_gives_one_message_and_leaves_nothing(folder: Path) -> None:
    cases = unusable(folder)
    before = sorted(folder.rglob("*"))
    words = json.dumps([list(map(str, arguments)) for arguments, _ in cases.values()])
    # In a separate process: reading a pipe would wait for ever.
    done = subprocess.run(
        [sys.executable, "-c", CONVERTS_EACH, words],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    *printed, rest = done.stderr.split("ended with 2\n")
    assert rest == ""
    messages = dict(zip(cases, printed, strict=True))
    for name, (_, expected) in cases.items():
        assert messages[name].count("error: ") == 1, name
        assert expected in messages[name], name
    assert sorted(folder.rglob("*")) == before


def test_a_conversion_that_fails_while_it_writes_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_room(path: Path, clips: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    table = write_table(folder / "table.csv", ROWS)
    before = sorted(folder.rglob("*"))
    monkeypatch.setattr("lr2ppo.data.convert.folder.write_clips", no_room)
    assert "No space left on device" in refused(capsys, table, "--out", folder / "new" / "out")
    assert sorted(folder.rglob("*")) == before
