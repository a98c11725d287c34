"""Which encoders made features: told by the feature file, and kept in a run's folder for clips that come later."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
from pydantic import ValidationError

from lr2ppo.config.schema import Count, Section
from lr2ppo.data.features.layout import read_attribute, read_fixed_text
from lr2ppo.errors import UserError
from lr2ppo.files import write_json

FEATURES_FILE = "features.json"
WHAT_MATTERS = ("text_encoder", "image_encoder", "tokenizer", "frame_tokens", "max_text_tokens")


class Encoding(Section):
    """What encodes a raw clip as a file's features were; encoders and tokenizer are called `name@fingerprint`.

    The paths are those given at extraction, where the same encoders need not lie for ever.
    """

    text_encoder: str
    image_encoder: str
    tokenizer: str
    frame_tokens: Literal["class", "patches"]
    max_text_tokens: Count
    dtype: Literal["float32", "float16", "bfloat16"]
    text_path: str
    tokenizer_path: str
    image_path: str

    def facts(self) -> dict[str, str | int]:
        """What two encodings have in common that encode alike: neither names nor paths are among it."""
        return {name: _fingerprint(getattr(self, name)) for name in WHAT_MATTERS}


def _fingerprint(value: str | int) -> str | int:
    return value.rpartition("@")[2] if isinstance(value, str) else value


def differing_facts(found: Encoding | None, wanted: Encoding | None) -> list[str]:
    """What two encodings differ in, each as `what found, wanted other`."""
    if found is None or wanted is None:
        names = [str(each and f"{each.text_encoder} and {each.image_encoder}") for each in (found, wanted)]
        return [] if found is wanted else [f"encoders {names[0]}, wanted {names[1]}"]
    return [
        f"{name} {getattr(found, name)}, wanted {getattr(wanted, name)}"
        for name, fact in found.facts().items()
        if fact != wanted.facts()[name]
    ]


def read_encoding(file: h5py.File, path: Path) -> Encoding | None:
    """What a feature file tells of its encoders; None where it does not tell all of it, as published files do."""
    texts = (name for name, field in Encoding.model_fields.items() if field.annotation is not int)
    told: dict[str, Any] = {name: read_fixed_text(file, name, path) for name in texts}
    if None in told.values():
        return None
    try:
        return Encoding.model_validate(told | {"max_text_tokens": read_attribute(file, "max_text_tokens", path)})
    except ValidationError:
        return None


def common_encoding(encodings: Mapping[Path, Encoding | None]) -> Encoding | None:
    """What made all files of a store; None where one of them does not tell.

    Raises `UserError` where two files tell different encoders.
    """
    told = {path: encoding for path, encoding in encodings.items() if encoding is not None}
    for path, encoding in told.items():
        first = next(iter(told))
        if differing := differing_facts(encoding, told[first]):
            raise UserError(
                f"{path}: found features made with {', '.join(differing)} as in {first}; "
                "extract all files of a store with the same encoders"
            )
    return next(iter(told.values())) if len(told) == len(encodings) and told else None


def write_features_file(folder: Path, encoding: Encoding | None, files: Sequence[Path]) -> None:
    """Keep in a run's folder what made the features that it learns from, and where these are."""
    encoders = None if encoding is None else encoding.model_dump(mode="json")
    write_json(folder / FEATURES_FILE, {"encoders": encoders, "files": [str(path) for path in files]})


def read_features_file(folder: Path) -> Encoding | None:
    """What a run's folder tells of its encoders: None where its features named none, or it was made before they did."""
    path = folder / FEATURES_FILE
    if not path.is_file():
        return None
    try:
        told = json.loads(path.read_text(encoding="utf-8"))["encoders"]
        return None if told is None else Encoding.model_validate(told)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: does not tell a run's encoders: {error}; remove it, or mend it") from None
