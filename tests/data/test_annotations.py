"""Annotation files: what is read, what may be missing, and the messages about faults."""

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lr2ppo.data.annotations import (
    Clip,
    Need,
    better_worse_pairs,
    count_pairs,
    draw_numbers,
    pick_pairs,
    read_clips,
    read_valid_clips,
    write_clips,
)
from lr2ppo.data.features.names import LONGEST_ID, as_seen, found_in
from lr2ppo.errors import FAULTS_SHOWN, UserError, raise_faults
from tests.helpers.fuzz import run_apart

letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = st.text(letters, max_size=12)
labels_drawn = texts.filter(as_seen)
parts = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/"), min_size=1, max_size=6)
# Every part names a group, which "." does not.
ids_drawn = st.lists(parts.filter(lambda part: part != "."), min_size=1, max_size=3).map("/".join).filter(as_seen)


@st.composite
def clip_lists(draw: st.DrawFn) -> list[Clip]:
    ids = draw(st.lists(ids_drawn, min_size=1, max_size=5, unique_by=as_seen))
    clips = []
    for clip_id in ids:
        labels = draw(st.lists(labels_drawn, min_size=1, max_size=6))
        count = len(labels)
        # A label has the same grade each time.
        of_labels = draw(st.none() | st.fixed_dictionaries({as_seen(label): st.integers(0, 2) for label in labels}))
        grades = of_labels and [of_labels[as_seen(label)] for label in labels]
        seen = list(map(as_seen, labels))
        different = [(one, other) for one in range(count) for other in range(count) if seen[one] != seen[other]]
        pairs = draw(st.lists(st.sampled_from(different), max_size=4)) if different else []
        clips.append(
            Clip(
                id=clip_id,
                labels=tuple(labels),
                grades=None if grades is None else np.array(grades, dtype=np.int64),
                description=draw(texts),
                filename=draw(texts),
                images=tuple(draw(st.lists(texts, max_size=3))),
                pairs=np.array(pairs, dtype=np.int64).reshape(-1, 2),
            )
        )
    return clips


def plain(clip: Clip) -> dict[str, Any]:
    grades = None if clip.grades is None else clip.grades.tolist()
    return vars(clip) | {"grades": grades, "pairs": clip.pairs.tolist()}


def entry(clip_id: str = "clip", **keys: Any) -> dict[str, Any]:
    """A complete clip with three graded labels, some keys replaced."""
    tags = [{"tag": "a", "target": 2}, {"tag": "b", "target": 0}, {"tag": "c", "target": 1}]
    whole = {"id": clip_id, "tags": tags, "description": "d", "filename": "f", "image": ["i"], "index": [[0, 1]]}
    return whole | keys


def write_json(folder: Path, value: Any) -> Path:
    path = folder / "clips.json"
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def read_one(folder: Path, value: Any, need: Need = "labels") -> Clip:
    (clip,) = read_clips(write_json(folder, [value]), need)
    return clip


def message_of(path: Path, need: Need = "labels") -> str:
    with pytest.raises(UserError) as caught:
        read_clips(path, need)
    message = str(caught.value)
    assert str(path) in message
    return message


@settings(deadline=None, max_examples=80)
@given(clip_lists())
def test_clips_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, clips: list[Clip]) -> None:
    path = tmp_path_factory.getbasetemp() / "clips.json"
    write_clips(path, clips)
    found = read_clips(path)
    assert [plain(clip) for clip in found] == [plain(clip) for clip in clips]
    assert all(clip.pairs.dtype == np.int64 and clip.pairs.shape[1] == 2 for clip in found)
    assert all(clip.grades is None or clip.grades.dtype == np.int64 for clip in found)


def test_writing_makes_the_folder_and_keeps_readable_letters(tmp_path: Path) -> None:
    path = tmp_path / "pairs" / "clips.json"
    write_clips(path, [Clip("é", ("日本", "naïve"))])
    content = path.read_text(encoding="utf-8")
    assert "日本" in content
    assert "target" not in content
    assert "index" not in content


@pytest.mark.parametrize(("target", "grade"), [(0, 0), (2, 2), ("1", 1), ("2.0", 2), (1.0, 1), (" 2 ", 2)])
def test_a_grade_may_be_a_number_or_a_text(tmp_path: Path, target: Any, grade: int) -> None:
    clip = read_one(tmp_path, entry(tags=[{"tag": "a", "target": target}], index=[]), "grades")
    assert clip.grades is not None
    assert clip.grades.tolist() == [grade]


@pytest.mark.parametrize("value", ["missing", None])
def test_description_filename_frames_and_pairs_may_be_missing(tmp_path: Path, value: str | None) -> None:
    keys = ("description", "filename", "image", "index")
    whole = entry()
    given_keys = {key: item for key, item in whole.items() if key not in keys}
    if value is None:
        given_keys |= dict.fromkeys(keys)
    clip = read_one(tmp_path, given_keys, "grades")
    assert (clip.description, clip.filename, clip.images) == ("", "", ())
    assert clip.pairs.shape == (0, 2)


def test_labels_without_grades_are_enough_where_only_labels_are_needed(tmp_path: Path) -> None:
    clip = read_one(tmp_path, entry(tags=[{"tag": "a"}, {"tag": "b", "target": None}]))
    assert clip.labels == ("a", "b")
    assert clip.grades is None


def test_unknown_keys_are_ignored(tmp_path: Path) -> None:
    tags = [{"tag": "a", "target": 1, "weight": 0.3}, {"tag": "b", "target": 2}]
    clip = read_one(tmp_path, entry(tags=tags, movie="tt01", source={"deep": [1]}))
    assert clip.labels == ("a", "b")


def test_equal_labels_of_one_clip_and_grade_stay_separate(tmp_path: Path) -> None:
    tags = [{"tag": "a", "target": 2}, {"tag": "a", "target": "2.0"}]
    clip = read_one(tmp_path, entry(tags=tags, index=[]))
    assert clip.labels == ("a", "a")
    assert clip.grades is not None
    assert clip.grades.tolist() == [2, 2]
    assert read_one(tmp_path, entry(tags=[{"tag": "a"}, {"tag": "a"}], index=[])).labels == ("a", "a")


def test_a_label_of_two_grades_is_refused(tmp_path: Path) -> None:
    tags = [{"tag": "a", "target": 0}, {"tag": "b", "target": 1}, {"tag": "a", "target": 2}]
    assert "clip 0 (clip): tags: found 'a' with the grades 0 and 2, wanted one" in message_of(
        write_json(tmp_path, [entry(tags=tags)])
    )


def test_a_pair_of_a_label_with_itself_is_refused_also_at_two_positions(tmp_path: Path) -> None:
    for other in ("boat", "bo\u00adat"):
        tags = [{"tag": "boat", "target": 1}, {"tag": "car", "target": 0}, {"tag": other, "target": 1}]
        message = message_of(write_json(tmp_path, [entry(tags=tags, index=[[0, 1], [2, 0]])]))
        assert f"index: found [2, 0], the label {other!r} twice, wanted two labels" in message


@pytest.mark.parametrize("label", ["", " ", "\t\n", "\u2003\xa0", "\u2800", "\u3164", "\u200d", "\x01", "\U000e0061"])
def test_a_label_of_white_space_is_refused(tmp_path: Path, label: str) -> None:
    tags = [{"tag": "a"}, {"tag": label}, {"tag": " "}]
    message = message_of(write_json(tmp_path, [entry(tags=tags, index=[])]))
    assert f"tags: found the label {label!r}, wanted a text (and 1 more)" in message


BAD_IDS = ["a//b", "a/./b", "/a", "a/", ".", "/", " ", "\u2003", "a\nb", "\x85", "c0/img_emb", "text_len"]


@pytest.mark.parametrize("clip_id", BAD_IDS)
def test_an_id_that_names_no_group_of_its_own_is_refused(tmp_path: Path, clip_id: str) -> None:
    assert f"id: found {clip_id!r}, wanted " in message_of(write_json(tmp_path, [entry("c0"), entry(clip_id)]))


@pytest.mark.parametrize("clip_id", ["..", "a/../b", " a", "img_emb2", "é/日", "a\xa0b", "a" * LONGEST_ID])
def test_other_ids_are_read(tmp_path: Path, clip_id: str) -> None:
    assert read_one(tmp_path, entry(clip_id)).id == clip_id


LONG = "i" * 2**20


@pytest.mark.parametrize(
    "keys",
    [
        {"id": LONG},
        {"id": [LONG]},
        {"id": LONG, "tags": []},
        {"description": [LONG]},
        {"tags": [{"tag": LONG, "target": 99}]},
        {"tags": [{"tag": LONG, "target": grade} for grade in (0, 1)]},
        {"tags": [{"tag": " " * len(LONG)}]},
    ],
)
def test_a_message_about_a_long_text_is_short(tmp_path: Path, keys: dict[str, Any]) -> None:
    path = write_json(tmp_path, [entry(**keys)])
    _, faults = read_valid_clips(path)
    assert faults
    assert all(len(str(fault)) < 400 for fault in faults)


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = write_json(tmp_path, [entry()])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_clips(path)[0].id == "clip"


def link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (os.mkfifo, "cannot be read: is a named pipe, wanted a regular file"),
        (Path.mkdir, "cannot be read: is a folder, wanted a regular file"),
        (link_to_itself, "cannot be read: Too many levels of symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "cannot be read: is a device, wanted a regular file"),
    ],
)
def test_what_is_no_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], object], expected: str) -> None:
    make(tmp_path / "val_data.json")

    def check() -> None:
        # Nobody writes to the pipe, and the device has no end.
        resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
        signal.alarm(20)
        assert expected in message_of(tmp_path / "val_data.json")

    run_apart(check)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "file/clips.json"])
def test_a_path_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    for action in (read_clips, lambda path: write_clips(path, [Clip("c", ("a",))])):
        with pytest.raises(UserError):
            action(tmp_path / name)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param({"id": 5}, "id: found 5, wanted a string", id="id is a number"),
        pytest.param({"id": ""}, "id: found '', wanted a string that is not blank", id="id is empty"),
        pytest.param({"id": None}, "id: found None, wanted a string", id="id is null"),
        pytest.param({"tags": None}, "tags: wanted a list", id="no tags"),
        pytest.param({"tags": "a b"}, "tags: wanted a list", id="tags are a text"),
        pytest.param({"tags": ["a"]}, "tags: wanted a list", id="a tag is a text"),
        pytest.param({"tags": [{"target": 1}]}, "tags: wanted a list", id="a tag without its label"),
        pytest.param({"tags": [{"tag": 3, "target": 1}]}, "tags: wanted a list", id="a label is a number"),
        pytest.param({"tags": []}, "tags: found no labels", id="empty tags"),
        pytest.param({"description": ["d"]}, "description: found ['d'], wanted a string", id="description is a list"),
        pytest.param({"filename": 3}, "filename: found 3, wanted a string", id="filename is a number"),
        pytest.param({"description": "half \ud800"}, "description: found 'half \\ud800', wanted", id="half a letter"),
        pytest.param({"image": ["a\0.jpg"]}, "image: wanted a list of paths", id="null in a path"),
        pytest.param({"tags": [{"tag": "\udfff", "target": 1}]}, "tags: wanted a list", id="a label is half a letter"),
        pytest.param({"image": "a.jpg"}, "image: wanted a list of paths", id="images are a text"),
        pytest.param({"image": [1]}, "image: wanted a list of paths", id="an image is a number"),
        pytest.param({"index": "0 1"}, "index: wanted a list", id="pairs are a text"),
        pytest.param({"index": [[0, 3]]}, "found [0, 3], wanted two different positions below 3", id="pair beyond"),
        pytest.param({"index": [[-1, 0]]}, "index: found [-1, 0]", id="pair below 0"),
        pytest.param({"index": [[1, 1]]}, "index: found [1, 1]", id="pair of one label"),
        pytest.param({"index": [[0, 1, 2]]}, "index: found [0, 1, 2]", id="pair of three"),
        pytest.param({"index": [0, 1]}, "index: found 0", id="pair is a number"),
        pytest.param({"index": [[0, True]]}, "index: found [0, True]", id="pair holds true"),
        pytest.param({"index": [[0, 1.0]]}, "index: found [0, 1.0]", id="pair holds a share"),
    ],
)
def test_a_fault_names_the_clip_and_what_was_wanted(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    message = message_of(write_json(tmp_path, [entry("fine"), entry("bad") | keys]))
    assert "1 fault found" in message
    assert f"clip 1 ({keys.get('id', 'bad')}): " in message
    assert expected in message


@pytest.mark.parametrize(
    "target", [11, -1, 0.5, True, "high", "", "1_0", "0b1", "\u0662", "nan", [1], {}, float("nan"), float("inf"), None]
)
def test_a_target_that_is_no_grade_is_refused_naming_its_label(tmp_path: Path, target: Any) -> None:
    tags = [{"tag": "a", "target": 1}, {"tag": "b", "target": target}]
    message = message_of(write_json(tmp_path, [entry("fine"), entry("bad", tags=tags)]))
    assert f"clip 1 (bad): target of label 'b': found {target!r}, wanted a whole number from 0 to 10" in message


@pytest.mark.parametrize("value", ["clip", 3, None, ["id", "tags"]])
def test_an_entry_that_is_no_mapping_is_refused_by_its_place(tmp_path: Path, value: Any) -> None:
    message = message_of(write_json(tmp_path, [entry(), value]))
    assert f"clip 1 (not a mapping): found {type(value).__name__}, wanted a mapping" in message


def test_a_clip_without_id_is_named_by_its_place(tmp_path: Path) -> None:
    message = message_of(write_json(tmp_path, [{"tags": []}]))
    assert "clip 0 (without id): id: found None" in message


def test_a_second_clip_of_the_same_id_is_refused(tmp_path: Path) -> None:
    message = message_of(write_json(tmp_path, [entry("one"), entry("two"), entry("one")]))
    assert "clip 2 (one): a second clip with the same id" in message


@pytest.mark.parametrize(
    ("need", "keys", "expected"),
    [
        (
            "grades",
            {"tags": [{"tag": "a"}], "index": []},
            "target of label 'a': found None, wanted a whole number from 0 to 10",
        ),
        ("pairs", {"index": []}, "index: found no pairs"),
        ("pairs", {"index": None}, "index: found no pairs"),
        ("images", {"image": []}, "image: found no frames"),
    ],
)
def test_only_the_stage_that_needs_a_key_misses_it(
    tmp_path: Path, need: Need, keys: dict[str, Any], expected: str
) -> None:
    path = write_json(tmp_path, [entry("bare", **keys)])
    assert f"clip 0 (bare): {expected}" in message_of(path, need)
    assert read_clips(path)[0].id == "bare"


def test_captioned_pictures_need_no_labels(tmp_path: Path) -> None:
    clip = read_one(tmp_path, entry(tags=[], index=[]), "images")
    assert clip.labels == ()
    assert clip.images == ("i",)


def test_all_faults_of_a_file_are_reported_at_once(tmp_path: Path) -> None:
    entries = [entry("a", tags=[]), entry("fine"), entry("b", index=[[0, 0]]), entry("c", image=3)]
    message = message_of(write_json(tmp_path, entries))
    assert "3 faults found" in message
    assert [line.strip().split(":")[0] for line in message.splitlines()[1:]] == [
        "clip 0 (a)",
        "clip 2 (b)",
        "clip 3 (c)",
    ]


def test_all_faults_of_a_clip_are_reported_at_once(tmp_path: Path) -> None:
    tags = [{"tag": "a", "target": 11}, {"tag": "b", "target": -6}, {"tag": "c", "target": 1}]
    bad = entry("bad", tags=tags, index=[[0, 1], [0, 9], [2, 2]], image=3, description=4)
    lines = message_of(write_json(tmp_path, [bad])).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "clip 0 (bad): target of label 'a': found 11, wanted a whole number from 0 to 10 (and 1 more)",
        "clip 0 (bad): description: found 4, wanted a string",
        "clip 0 (bad): image: wanted a list of paths",
        "clip 0 (bad): index: found [0, 9], wanted two different positions below 3 (and 1 more)",
    ]


def test_valid_clips_are_read_beside_those_at_fault(tmp_path: Path) -> None:
    path = write_json(tmp_path, [entry("a"), entry("b", tags=[]), entry("a"), entry("c")])
    clips, faults = read_valid_clips(path)
    assert [clip.id for clip in clips] == ["a", "c"]
    assert [fault.clip for fault in faults] == ["1 (b)", "2 (a)"]


@pytest.mark.parametrize("beyond", [0, 1, 25])
def test_more_faults_than_a_screenful_are_counted(tmp_path: Path, beyond: int) -> None:
    count = FAULTS_SHOWN + beyond
    message = message_of(write_json(tmp_path, [entry(f"clip-{number}", tags=[]) for number in range(count)]))
    assert f"{count} faults found" in message
    assert message.count("found no labels") == FAULTS_SHOWN
    assert (f"and {beyond} more" in message) == (beyond > 0)
    assert "more" in message.splitlines()[-1] or beyond == 0


def test_no_fault_is_no_error() -> None:
    raise_faults("file", [], "do nothing")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[{]", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff\xfe\x80", "cannot be read"),
        (b"[]", "found an empty list, wanted a JSON list of clips"),
        (b"{}", "found dict, wanted a JSON list of clips"),
        (b"3", "found int, wanted a JSON list of clips"),
        (b"[" * 100_000, "is not JSON"),
        (b"[" + b"1" * 5_000 + b"]", "is not JSON"),
    ],
)
def test_a_file_that_is_no_list_of_clips_is_refused(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "clips.json"
    path.write_bytes(content)
    assert expected in message_of(path)


def test_a_missing_file_is_refused_with_the_setting_to_check(tmp_path: Path) -> None:
    message = message_of(tmp_path / "absent.json")
    assert "no such annotation file" in message
    assert "data.root" in message


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in message_of(tmp_path)


@given(st.lists(st.integers(0, 10), max_size=7))
def test_all_pairs_of_different_grades_are_found_once_the_better_label_first(grades: list[int]) -> None:
    positions = range(len(grades))
    wanted = [[a, b] for a in positions for b in positions if grades[a] > grades[b]]
    assert better_worse_pairs(np.array(grades, dtype=np.int64)).tolist() == wanted


@given(st.lists(st.integers(0, 10), max_size=7), st.data())
def test_pairs_are_picked_by_their_number_among_all(grades: list[int], data: st.DataObject) -> None:
    own = np.array(grades, dtype=np.int64)
    every = better_worse_pairs(own)
    assert count_pairs(own) == len(every)
    if len(every):
        numbers = data.draw(st.lists(st.integers(0, len(every) - 1)))
        assert pick_pairs(own, np.array(numbers, dtype=np.int64)).tolist() == every[numbers].tolist()


@settings(deadline=None, max_examples=10)
@given(total=st.integers(1, 50) | st.integers(2**24 + 1, 2**50), share=st.floats(0, 1))
def test_drawn_numbers_are_different_and_in_range(total: int, share: float) -> None:
    wanted = min(round(share * total), 1000)
    numbers = draw_numbers(total, wanted, np.random.default_rng(0))
    assert len(set(numbers.tolist())) == len(numbers) == wanted
    assert all(0 <= number < total for number in numbers.tolist())


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"descripton": "x"}, "found the key 'descripton', did you mean description?"),
        ({"Image": ["x"]}, "found the key 'Image', did you mean image?"),
        ({"tags": [{"tag": "a", "targets": 1}]}, "tags: found the key 'targets', did you mean target?"),
    ],
)
def test_a_key_that_is_almost_a_missing_one_is_refused(tmp_path: Path, keys: dict[str, Any], expected: str) -> None:
    bare: dict[str, Any] = {"id": "bare", "tags": [{"tag": "a"}], "index": []}
    assert f"clip 0 (bare): {expected}" in message_of(write_json(tmp_path, [bare | keys]))


def test_other_keys_are_left_alone(tmp_path: Path) -> None:
    more = entry(
        images=["x"],
        duration=1.5,
        descriptions=["x"],
        filenames=["x"],
        indexes=[],
        tags=[{"tag": "a", "target": 1, "targets": 2}],
        index=[],
    )
    assert read_one(tmp_path, more).labels == ("a",)


def test_a_key_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clips.json").write_text('[{"id": "a", "tags": [{"tag": "b", "target": 0, "target": 2}]}]', "utf-8")
    assert "found the key 'target' twice in one object" in message_of(tmp_path / "clips.json")


LOOKS = [
    ("caf\u00e9", "cafe\u0301"),
    ("boat", "boat\u200b"),
    ("fishing boat", "fishing  boat"),
    ("boat", " boat"),
    ("a b", "a\u00a0b"),
    ("a b", "a\u2800b"),
    ("\u2764", "\u2764\ufe0f"),
    ("boat", "bo\u034fat"),
    ("boat", "boat\u3164"),
    ("boat", "boat\u200d"),
    ("a b", "a \u200cb"),
    ("boat", "boat\U000e0100"),
    ("boat", "bo\u200cat"),
    ("boat", "boat\U000e0061"),
]


@pytest.mark.parametrize(("one", "other"), LOOKS)
def test_labels_that_look_alike_have_one_grade_and_ids_that_do_are_refused(
    tmp_path: Path, one: str, other: str
) -> None:
    tags = [{"tag": one, "target": 1}, {"tag": other, "target": 2}]
    message = message_of(write_json(tmp_path, [entry(tags=tags)]))
    assert f"tags: found {one!a} and {other!a}, which look the same, with the grades 1 and 2, wanted one" in message
    message = message_of(write_json(tmp_path, [entry(one), entry(other)]))
    assert f"id: looks like that of clip {one!a}, but is spelled otherwise" in message


@pytest.mark.parametrize("label", ["boat\x7f", "bo\x08at", "boat\x85"])
def test_a_label_with_a_control_character_is_the_one_without(tmp_path: Path, label: str) -> None:
    tags = [{"tag": "boat", "target": 1}, {"tag": label, "target": 2}]
    assert "which look the same, with the grades 1 and 2" in message_of(write_json(tmp_path, [entry(tags=tags)]))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u0646\u0627\u0645\u0647\u200c\u0627\u06cc", "\u0646\u0627\u0645\u0647\u0627\u06cc"),
        ("\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f468\U0001f469\U0001f467"),
        ("\U0001f3f4\U000e0067\U000e0065\U000e007f", "\U0001f3f4\U000e0067\U000e0073\U000e007f"),
    ],
)
def test_labels_and_ids_that_look_different_are_different(tmp_path: Path, one: str, other: str) -> None:
    tags = [{"tag": one, "target": 1}, {"tag": other, "target": 2}]
    assert read_one(tmp_path, entry(tags=tags, index=[])).labels == (one, other)
    assert len(read_clips(write_json(tmp_path, [entry(one), entry(other)]))) == 2


def test_texts_stay_as_they_are_spelled(tmp_path: Path) -> None:
    tags = [{"tag": " cafe\u0301 "}, {"tag": "a\u200bb"}]
    assert read_one(tmp_path, entry(tags=tags, index=[])).labels == (" cafe\u0301 ", "a\u200bb")


def test_a_clip_is_found_however_its_id_is_spelled() -> None:
    assert found_in(["cafe\u0301", "a", "b\u200b"], ["caf\u00e9", "b", "c"]) == ["cafe\u0301", "b\u200b"]
