"""Read a user's table, CSV or JSON lines with one row per label of a clip, into clips and a list of faults."""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from lr2ppo.data.annotations import GRADES_WANTED, SPELL_ALIKE, parse_grade
from lr2ppo.data.features.names import as_seen, id_fault, misspelt
from lr2ppo.errors import UserError, advise
from lr2ppo.files import UNWRITABLE, parse_json, read_text

# Columns with one value per clip, given in at least one of its rows.
CLIP_COLUMNS = ("description", "frames", "video", "group", "domain")
COLUMNS = ("clip", "label", "grade", *CLIP_COLUMNS)
PREFERENCES = ("clip", "better", "worse")
DOMAINS = ("source", "target")
DELIMITERS = ",;\t"
# A key of JSON lines: the labels of a whole clip.
WHOLE_LIST = "labels"
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Record:
    """One row: its number in the file, counted as spreadsheets do, and its cells by column."""

    row: int
    cells: Mapping[str, str]


@dataclass
class TableClip:
    """A clip of a table: `grades [labels]` are None where empty, `preferences` are positions (better, worse)."""

    id: str
    row: int
    labels: list[str] = field(default_factory=list)
    grades: list[int | None] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)
    preferences: list[tuple[int, int]] = field(default_factory=list)

    @property
    def is_graded(self) -> bool:
        return None not in self.grades

    @property
    def is_source(self) -> bool:
        return self.about.get("domain") == "source"

    @property
    def unit(self) -> tuple[str, str]:
        """The unit that stays in one split: the clip's group, however its name is spelled; without one, the clip."""
        group = as_seen(self.about.get("group", ""))
        return ("group", group) if group else ("clip", self.id)


def read_records(
    path: Path, wanted: Sequence[str], names: Mapping[str, str], faults: list[str]
) -> tuple[list[Record], list[str]]:
    """The rows of a table and all columns that it has; `names` maps the `wanted` columns to their names in the table.

    Faults of single rows are added to `faults`. Raises `UserError` if the file is no table, or has a column whose name
    is almost that of one it lacks.
    """
    try:
        text = read_text(path)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}: line {line} is not UTF-8 text; save it as 'CSV UTF-8', as Excel calls it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}; {advise(error)}") from None
    called = {column: names.get(column, column).casefold() for column in wanted}
    rows = (
        _read_json_lines(text, called, faults)
        if path.suffix.lower() in JSON_SUFFIXES
        else _read_csv(path, text, called, faults)
    )
    found = list(dict.fromkeys(column for _, cells in rows for column in cells))
    # A line of JSON may lack a key that another has.
    records = [Record(row, {column: cells.get(name, "") for column, name in called.items()}) for row, cells in rows]
    if not records and not faults:
        raise UserError(f"{path}: found no rows below the header, wanted one a label of a clip")
    absent = [called[column] for column in wanted if column in names and called[column] not in found]
    if absent:
        raise UserError(f"{path}: found no column {', '.join(absent)}, which --columns names; {_has(found)}")
    if near := misspelt([column for column in found if column != WHOLE_LIST], list(called.values())):
        raise UserError(f"{path}: found a column {near[0]}, did you mean {near[1]}? Rename it, or remove it")
    for record in records:
        for column, cell in record.cells.items():
            if UNWRITABLE.search(cell):
                faults.append(f"row {record.row}: {column}: found {cell!r}, which holds an invalid character")
    return records, found


def require_columns(path: Path, found: Sequence[str], names: Mapping[str, str], *choices: Sequence[str]) -> None:
    """Raise `UserError` if the table has no column of one of the `choices`."""
    missing = [
        " or ".join(names.get(column, column) for column in choice)
        for choice in choices
        if not any(names.get(column, column).casefold() in found for column in choice)
    ]
    if missing:
        raise UserError(
            f"{path}: found no column {', '.join(missing)}; {_has(found)}; rename them, or map them with "
            "--columns clip=video_id,label=tag"
        )


def _has(found: Sequence[str]) -> str:
    return f"the table has {', '.join(found) or 'none'}"


def _read_csv(path: Path, text: str, called: Mapping[str, str], faults: list[str]) -> list[tuple[int, dict[str, str]]]:
    """Rows by their column names in lower case; blank rows are left out, missing last cells are empty."""
    first = text.lstrip().partition("\n")[0]
    delimiter = max(DELIMITERS, key=lambda mark: len(set(_header(first.split(mark))) & set(called.values())))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    header: list[str] = []
    try:
        for number, cells in enumerate(reader, start=1):
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header(cells)
                if duplicates := [name for name, times in Counter(filter(None, header)).items() if times > 1]:
                    raise UserError(f"{path}: has two columns {duplicates[0]}; rename one of them")
            elif len(cells) > len(header):
                faults.append(
                    f"row {number}: found {len(cells)} cells, wanted {len(header)}; "
                    f"put text that contains {delimiter!r} in double quotes"
                )
            else:
                padded = [cell.strip() for cell in cells] + [""] * (len(header) - len(cells))
                rows.append((number, dict(zip(header, padded, strict=True))))
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num} is not CSV: {error}; is a double quote not closed?") from None
    return rows


def _header(cells: Iterable[str]) -> list[str]:
    return [cell.strip().strip('"').strip().casefold() for cell in cells]


def _read_json_lines(text: str, called: Mapping[str, str], faults: list[str]) -> list[tuple[int, dict[str, str]]]:
    """Rows of objects, one per line; an object with a list `labels` becomes one row per label."""
    rows = []
    # A list elsewhere would become one text; in columns that are not read it does not matter.
    one_text = {name for column, name in called.items() if column != "frames"}
    label_key = called.get("label", "label")
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
        except (ValueError, RecursionError) as error:
            faults.append(f"row {number}: is not JSON: {error}")
            continue
        if not isinstance(entry, dict):
            faults.append(f'row {number}: wanted one JSON object per line, such as {{"clip": "c1", ...}}')
            continue
        names = Counter(name.casefold() for name in entry)
        if len(names) < len(entry):
            faults.append(f"row {number}: found the key {names.most_common(1)[0][0]} twice, wanted it once")
        entry = {name.casefold(): value for name, value in entry.items()}
        labels = entry.pop(WHOLE_LIST, None)
        if labels == []:
            faults.append(f"row {number}: labels: found none, wanted at least one")
        for label in labels if isinstance(labels, list) else [{} if labels is None else labels]:
            own = label if isinstance(label, dict) else {label_key: label}
            values = entry | {name.casefold(): value for name, value in own.items()}
            cells = {name: _cell(value, takes_list=name not in one_text) for name, value in values.items()}
            for name in [name for name, cell in cells.items() if cell is None]:
                hint = ", did you mean labels?" if name == label_key and labels is None else ""
                faults.append(f"row {number}: {name}: found {shortened(values[name])}, wanted a string{hint}")
            rows.append((number, {name: cell or "" for name, cell in cells.items()}))
    return rows


def _cell(value: Any, *, takes_list: bool) -> str | None:
    """Convert a JSON value into a cell's text; None if it has no such form."""
    if takes_list and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return ";".join(value)
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value).strip()
    return "" if value is None else None


def gather_clips(records: Iterable[Record], faults: list[str]) -> dict[str, TableClip]:
    """The clips of a table's rows by id, in the order of their first rows; faults are added to `faults`."""
    clips: dict[str, TableClip] = {}
    spelled: dict[str, str] = {}
    label_of: dict[tuple[str, str], tuple[str, int]] = {}
    rows_of: dict[tuple[str, str], int] = {}
    for record in records:
        name, label = record.cells["clip"], record.cells.get("label", "")
        if not as_seen(name) or not as_seen(label):
            faults.append(f"row {record.row}: {'label' if as_seen(name) else 'clip'}: is empty")
            continue
        if (known := spelled.setdefault(as_seen(name), name)) != name:
            faults.append(f"row {record.row}: clip {name!a} looks like clip {known!a}, {SPELL_ALIKE}")
        clip = clips.setdefault(name, TableClip(name, record.row))
        looks = (name, as_seen(label))
        if looks in label_of:
            faults.append(f"row {record.row}: clip {name} has {_again(label, *label_of[looks])}")
        label_of.setdefault(looks, (label, record.row))
        clip.labels.append(label)
        clip.grades.append(_read_grade(record, faults))
        for column in CLIP_COLUMNS:
            if value := record.cells.get(column, ""):
                first = rows_of.setdefault((name, column), record.row)
                known = clip.about.setdefault(column, value)
                if known != value:
                    faults.append(
                        f"row {record.row}: clip {name} has the {column} {shortened(value)}, "
                        f"in row {first} {shortened(known)}"
                    )
    for clip in clips.values():
        faults += [f"row {clip.row}: clip {clip.id} {fault}" for fault in _clip_faults(clip)]
    return clips


def _again(label: str, known: str, row: int) -> str:
    """What is wrong with a label that is, or looks like, the `known` one of the same clip."""
    if label == known:
        return f"the label {label!r} in row {row} already"
    return f"the label {label!a}, which looks like {known!a} in row {row}, {SPELL_ALIKE}"


def _read_grade(record: Record, faults: list[str]) -> int | None:
    cell = record.cells.get("grade", "")
    grade = parse_grade(cell)
    if cell and grade is None:
        faults.append(f"row {record.row}: grade: found {shortened(cell)}, wanted {GRADES_WANTED}, or nothing")
        # Not None, or the clip would also be reported as lacking a grade.
        return 0
    return grade


def _clip_faults(clip: TableClip) -> list[str]:
    """Faults of a clip as a whole."""
    faults = []
    if fault := id_fault(clip.id):
        faults.append(f"has an id that cannot be used: {fault}")
    ungraded = clip.grades.count(None)
    if 0 < ungraded < len(clip.grades):
        faults.append(f"has {ungraded} of {len(clip.grades)} labels without a grade; give all of them one, or none")
    if ("frames" in clip.about) == ("video" in clip.about):
        faults.append(f"has {'both' if 'frames' in clip.about else 'neither'} frames and a video, wanted one of them")
    return faults


def domain_faults(clips: Iterable[TableClip]) -> list[str]:
    """Faults of the domains of a table that has that column."""
    faults = []
    for clip in clips:
        domain = clip.about.get("domain", "")
        if domain not in DOMAINS:
            faults.append(f"row {clip.row}: clip {clip.id}: domain: found {domain!r}, wanted source or target")
        elif clip.is_source and not clip.is_graded:
            faults.append(f"row {clip.row}: clip {clip.id} is in the source domain but has no grades")
    return faults


def add_preferences(records: Iterable[Record], clips: Mapping[str, TableClip], faults: list[str]) -> None:
    """Add people's preferences between labels to the clips; faults are added to `faults`."""
    positions: dict[str, dict[str, int]] = {}
    for record in records:
        name, *labels = (record.cells[column] for column in PREFERENCES)
        if name not in clips:
            faults.append(f"row {record.row}: clip {name!r} is not in the table")
            continue
        clip = clips[name]
        if name not in positions:
            positions[name] = {label: place for place, label in enumerate(clip.labels)}
        unknown = [label for label in labels if label not in positions[name]]
        if unknown:
            faults.append(f"row {record.row}: clip {name} has no label {unknown[0]!r}")
        elif labels[0] == labels[1]:
            faults.append(f"row {record.row}: clip {name}: {labels[0]!r} is both better and worse")
        elif clip.is_source:
            faults.append(f"row {record.row}: clip {name} is in the source domain; preferences are for target clips")
        else:
            better, worse = (positions[name][label] for label in labels)
            clip.preferences.append((better, worse))
