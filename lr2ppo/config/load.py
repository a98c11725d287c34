"""A stage's YAML file and overrides, read into the validated tree of `config.py`, and that tree as YAML again."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from reprlib import Repr
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lr2ppo.config.schema import CONFIGS, Section
from lr2ppo.errors import UserError

# YAML may repeat a value in a value until no screen could hold it.
SHORTENED = Repr()
SHORTENED.maxstring = SHORTENED.maxother = 100


def load_config(path: Path, stage: str, overrides: Sequence[str] = ()) -> Any:
    """Read a stage's YAML file and apply overrides; returns that stage's config class.

    Raises `UserError` naming every key at fault, what was found there and what was wanted.
    """
    tree = _read_yaml(path)
    found_stage = tree.get("stage")
    if found_stage != stage:
        raise UserError(f"{path}: stage: found {found_stage!r}, wanted {stage!r}; give this stage's own YAML file")
    tree.setdefault("preset", path.resolve().parent.name)
    schema = CONFIGS[stage]
    for override in overrides:
        _apply_override(tree, override, schema)
    try:
        return schema.model_validate(tree)
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(fault, schema)}" for fault in error.errors())
        raise UserError(f"{path} with the overrides given cannot be used:\n{faults}") from None


def dump_config(config: Section) -> str:
    """The resolved tree as YAML, in the order of the schema."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a config tree by their dotted keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from config_leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        presets = sorted(str(found) for found in path.parent.parent.glob(f"*/{path.name}"))
        known = f"; there are: {', '.join(presets)}" if presets else ""
        raise UserError(f"{path}: no such config file{known}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    except Exception as error:
        # What is wrong with a single value, a date of month 13 or a number without digits, YAML lets through as it is.
        raise UserError(f"{path}: is not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: found {type(tree).__name__}, wanted a YAML mapping of keys to values")
    return tree


def _apply_override(tree: dict[str, Any], override: str, schema: type[Section]) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r}: wanted an override key=value, such as seed=1 or train.epochs=3")
    known = list(_known_keys(schema))
    if key not in known and not any(name.startswith(key + ".") for name in known):
        raise UserError(f"{override}: unknown key {key!r}{_nearest(key, known)}")
    try:
        # What is to be a text stays one: a run may be called 7 or on.
        value = text if _is_text(key, schema) else yaml.safe_load(text)
    except Exception as error:
        raise UserError(f"{override}: the value is not YAML: {error}") from None
    *sections, last = key.split(".")
    place = tree
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise UserError(f"{override}: {section} is {place!r} in the config file, wanted a section of keys")
    place[last] = value


def _explain(fault: Mapping[str, Any], schema: type[Section]) -> str:
    key = ".".join(str(part) for part in fault["loc"])
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest(key, list(_known_keys(schema)))}"
    if fault["type"] == "missing":
        return f"{key}: is missing"
    return f"{key}: found {SHORTENED.repr(fault['input'])}: {fault['msg'][:1].lower()}{fault['msg'][1:]}"


def _nearest(key: str, known: Sequence[str]) -> str:
    """`; did you mean ...?`, looking first among whole keys, then among their last parts."""
    sections = {name.rpartition(".")[0] for name in known} - {""}
    close = difflib.get_close_matches(key, [*sections, *known], n=1, cutoff=0.75)
    if not close:
        last_parts = {name.rpartition(".")[2]: name for name in known}
        close = [last_parts[part] for part in difflib.get_close_matches(key.rpartition(".")[2], last_parts, n=1)]
    return f"; did you mean {close[0]}?" if close else f"; known keys: {', '.join(known)}"


def _is_text(key: str, schema: type[BaseModel]) -> bool:
    """Whether a key's value is a text, or a text that may be missing."""
    name, _, rest = key.partition(".")
    field = schema.model_fields.get(name)
    if field is None:
        return False
    if rest:
        return (
            isinstance(field.annotation, type)
            and issubclass(field.annotation, BaseModel)
            and _is_text(rest, field.annotation)
        )
    return field.annotation in (str, str | None)


def _known_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in schema.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name
