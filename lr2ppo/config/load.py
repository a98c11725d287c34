"""Load a stage's YAML file and overrides into the validated config of `schema.py`, and dump it as YAML."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, overload

import yaml
from pydantic import BaseModel, ValidationError

from lr2ppo.config.schema import (
    CONFIGS,
    CompareConfig,
    DistillConfig,
    EvaluateConfig,
    FinetuneConfig,
    PointwiseConfig,
    PPOConfig,
    RewardConfig,
    Section,
    StageConfig,
)
from lr2ppo.errors import UserError, show
from lr2ppo.files import parse_yaml, read_yaml


@overload
def load_config(path: Path, stage: Literal["pointwise"], overrides: Sequence[str] = ()) -> PointwiseConfig: ...
@overload
def load_config(path: Path, stage: Literal["finetune"], overrides: Sequence[str] = ()) -> FinetuneConfig: ...
@overload
def load_config(path: Path, stage: Literal["reward"], overrides: Sequence[str] = ()) -> RewardConfig: ...
@overload
def load_config(path: Path, stage: Literal["distill"], overrides: Sequence[str] = ()) -> DistillConfig: ...
@overload
def load_config(path: Path, stage: Literal["ppo"], overrides: Sequence[str] = ()) -> PPOConfig: ...
@overload
def load_config(path: Path, stage: Literal["evaluate"], overrides: Sequence[str] = ()) -> EvaluateConfig: ...
@overload
def load_config(path: Path, stage: Literal["compare"], overrides: Sequence[str] = ()) -> CompareConfig: ...
@overload
def load_config(path: Path, stage: str, overrides: Sequence[str] = ()) -> Any: ...
def load_config(path: Path, stage: str, overrides: Sequence[str] = ()) -> StageConfig:
    """Read a stage's YAML file and apply overrides; return that stage's config.

    Raises `UserError` naming every key at fault, what was found there and what was wanted.
    """
    tree = _read_yaml(path)
    found_stage = tree.get("stage")
    if found_stage != stage:
        raise UserError(f"{path}: stage: found {show(found_stage)}, wanted {stage!r}; give this stage's YAML file")
    tree.setdefault("preset", path.resolve().parent.name)
    schema = CONFIGS[stage]
    # Names first: they decide which other keys their section has.
    for override in sorted(overrides, key=lambda override: not override.partition("=")[0].endswith(".name")):
        _apply_override(tree, override, schema)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(fault, schema)}" for fault in error.errors())
        given = " with the overrides given" if overrides else ""
        raise UserError(f"{path}{given} cannot be used:\n{faults}") from None


def dump_config(config: Section) -> str:
    """Return the resolved config as YAML, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of a config tree with their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from config_leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = read_yaml(path)
    except FileNotFoundError:
        presets = sorted(str(found) for found in path.parent.parent.glob(f"*/{path.name}"))
        known = f"; there are: {', '.join(presets)}" if presets else ""
        raise UserError(f"{path}: no such config file{known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: found {type(tree).__name__}, wanted a YAML mapping of keys to values")
    return tree


def _apply_override(tree: dict[str, Any], override: str, schema: type[Section]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: wanted an override key=value, such as seed=1 or train.epochs=3")
    known = list(known_keys(schema))
    if key not in known and not any(name.startswith(key + ".") for name in known):
        raise UserError(f"{override}: unknown key {key!r}{_nearest(key, known)}")
    try:
        # A text stays as it is typed: a run may be called 7 or on, and a folder "set #2".
        value = text if _takes_text(key, text, schema) else parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{override}: the value {error}") from None
    *sections, last = key.split(".")
    place = tree
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UserError(f"{override}: {section} is {show(place)} in the config file, wanted a section of keys")
    if last == "name" and sections:
        usual = getattr(schema.model_fields[sections[0]].default, "name", None)
        if place.get("name", usual) != value:
            # The section's other keys belong to the loss or the policy named in the file.
            place.clear()
            if sections == ["policy"]:
                _remove(tree, PPOConfig.of_policy)
    place[last] = _of_same_stage(value, place.get(last)) if isinstance(value, str) else value


def _of_same_stage(value: str, before: object) -> str:
    """A run's name alone, in place of `STAGE/newest`, is a run of that stage; any other value as it is."""
    stage, slash, which = before.partition("/") if isinstance(before, str) else ("", "", "")
    if not slash or which != "newest" or stage not in CONFIGS or "/" in value or value == "none":
        return value
    return f"{stage}/{value}"


def _remove(tree: dict[str, Any], keys: Sequence[str]) -> None:
    """Remove the sections of these dotted keys, if they are there."""
    for key in keys:
        section, _, last = key.rpartition(".")
        place = tree.get(section, {}) if section else tree
        if isinstance(place, dict):
            place.pop(last, None)


def _explain(fault: Mapping[str, Any], schema: type[Section]) -> str:
    key = _key_of(fault["loc"], schema)
    if fault["type"] == "union_tag_invalid":
        return f"{key}.name: found {show(fault['ctx']['tag'])}, wanted one of {fault['ctx']['expected_tags']}"
    if fault["type"] == "union_tag_not_found":
        return f"{key}: found {show(fault['input'])}, wanted a section of keys"
    if fault["type"] == "extra_forbidden":
        known = list(known_keys(schema))
        if key in known:
            return f"{key}: is not a key of the chosen {key.rpartition('.')[0]}.name; remove it"
        return f"{key}: unknown key{_nearest(key, known)}"
    if fault["type"] == "missing":
        return f"{key}: is missing"
    if fault["type"] == "value_error" and isinstance(fault["input"], Mapping):
        # Of values that do not go together; it names them.
        return str(fault["ctx"]["error"])
    return f"{key}: found {show(fault['input'])}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"


def _nearest(key: str, known: Sequence[str]) -> str:
    """`; did you mean ...?`, searching whole keys first, then their last parts."""
    sections = {name.rpartition(".")[0] for name in known} - {""}
    close = difflib.get_close_matches(key, [*sections, *known], n=1, cutoff=0.75)
    if not close:
        last_parts = {name.rpartition(".")[2]: name for name in known}
        close = [last_parts[part] for part in difflib.get_close_matches(key.rpartition(".")[2], last_parts, n=1)]
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(known)}"


def _key_of(location: Sequence[str | int], schema: type[BaseModel]) -> str:
    """The dotted key of a fault, without the tags that pydantic adds for the members of a union."""
    parts: list[str] = []
    sections: list[type[BaseModel]] = [schema]
    is_union = False
    for part in map(str, location):
        if is_union and part in {name for section in sections for name in _names_of(section)}:
            is_union = False
            continue
        parts.append(part)
        fields = [section.model_fields[part] for section in sections if part in section.model_fields]
        sections = [section for field in fields for section in _sections(field.annotation)]
        is_union = len(sections) > 1
    return ".".join(parts)


def _names_of(section: type[BaseModel]) -> Sequence[str]:
    """The values that a section's field `name` may have, if it is a literal."""
    field = section.model_fields.get("name")
    return [] if field is None else [value for value in get_args(field.annotation) if isinstance(value, str)]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a field may hold: one, several if it is a union, none if it holds a value."""
    return [each for each in _members(annotation) if isinstance(each, type) and issubclass(each, BaseModel)]


def _members(annotation: Any) -> list[Any]:
    """The types of a union, or the one type, without what is annotated."""
    return [getattr(each, "__origin__", each) for each in get_args(annotation) or (annotation,)]


def _takes_text(key: str, text: str, schema: type[BaseModel]) -> bool:
    """Whether an override's text is the value of a key, not YAML: of a text, a path, or one name in place of a list."""
    name, _, rest = key.partition(".")
    field = schema.model_fields.get(name)
    if field is None:
        return False
    if rest:
        return any(_takes_text(rest, text, section) for section in _sections(field.annotation))
    if field.annotation == tuple[str, ...]:
        return not text.startswith("[")
    members = set(_members(field.annotation))
    return members <= {str, Path, NoneType} and not (text == "null" and members == {Path, NoneType})


def known_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that a config may have."""
    for name, field in schema.model_fields.items():
        sections = _sections(field.annotation)
        if sections:
            keys = (key for section in sections for key in known_keys(section, f"{prefix}{name}."))
            yield from dict.fromkeys(keys)
        else:
            yield prefix + name
