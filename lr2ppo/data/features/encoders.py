"""The encoders that made features: named in the feature file, and saved in a run's folder to encode new clips."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import h5py
from pydantic import ValidationError

from lr2ppo.config.schema import Count, Section
from lr2ppo.data.features.layout import read_attribute, read_fixed_text
from lr2ppo.errors import UserError
from lr2ppo.files import read_own_json, write_json

FEATURES_FILE = "features.json"
COMPARED = ("text_encoder", "image_encoder", "tokenizer", "frame_tokens", "max_text_tokens")
# Files and runs of earlier versions do not name these; they are compared where both sides do.
ADDED = ("text_settings", "image_settings", "tokenizer_parts")


class Encoding(Section):
    """The encoders and settings that made a file's features; encoders and tokenizer are named `name@fingerprint`.

    The fingerprints are of the encoders' tensors and of the tokenizer's vocabulary; the settings say in words what else
    decides the features, such as attention heads, and `tokenizer_parts` is a fingerprint of the whole tokenizer. The
    paths are those given at extraction; the encoders may have moved since.
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
    text_settings: str | None = None
    image_settings: str | None = None
    tokenizer_parts: str | None = None

    def facts(self) -> dict[str, str | int]:
        """What decided the features, by name: no paths, and nothing that is not known."""
        known = {name: getattr(self, name) for name in (*COMPARED, *ADDED)}
        return {name: value for name, value in known.items() if value is not None}

    def paths(self) -> dict[str, str]:
        """Where the encoders were."""
        return {"text_path": self.text_path, "tokenizer_path": self.tokenizer_path, "image_path": self.image_path}

    def fingerprints(self) -> dict[str, str | int]:
        """The values that are equal in equal encodings: no names and no paths."""
        return {name: without_name(value) for name, value in self.facts().items()}


def without_name(value: str | int) -> str | int:
    """The fingerprint of `name@fingerprint`, or the whole value: encoders may be renamed."""
    return value.rpartition("@")[2] if isinstance(value, str) else value


def encoding_differences(found: Encoding | None, wanted: Encoding | None) -> list[str]:
    """The differences of two encodings, each as `field found, wanted other`."""
    if found is None or wanted is None:
        names = [str(each and f"{each.text_encoder} and {each.image_encoder}") for each in (found, wanted)]
        return [] if found is wanted else [f"encoders {names[0]}, wanted {names[1]}"]
    known = wanted.fingerprints()
    return [
        f"{name} {getattr(found, name)}, wanted {getattr(wanted, name)}"
        for name, value in found.fingerprints().items()
        if name in known and value != known[name]
    ]


def read_encoding(file: h5py.File, path: Path) -> Encoding | None:
    """Read the encoding from a feature file; None if an attribute is missing, as in published files."""
    texts = (name for name, field in Encoding.model_fields.items() if field.annotation is not int)
    stored: dict[str, Any] = {name: read_fixed_text(file, name, path) for name in texts}
    if any(value is None and name not in ADDED for name, value in stored.items()):
        return None
    try:
        return Encoding.model_validate(stored | {"max_text_tokens": read_attribute(file, "max_text_tokens", path)})
    except ValidationError:
        return None


def common_encoding(encodings: Mapping[Path, Encoding | None]) -> Encoding | None:
    """The encoding of all files of a store; None if one of them has none.

    Raises `UserError` if two files have different encodings.
    """
    known = {path: encoding for path, encoding in encodings.items() if encoding is not None}
    for path, encoding in known.items():
        first = next(iter(known))
        if differences := encoding_differences(encoding, known[first]):
            raise UserError(
                f"{path}: found features made with {', '.join(differences)} as in {first}; "
                "extract all files of a store with the same encoders"
            )
    return next(iter(known.values())) if len(known) == len(encodings) and known else None


def write_features_file(folder: Path, encoding: Encoding | None, files: Sequence[Path]) -> None:
    """Save in a run's folder the encoding and the paths of the features it trains on."""
    encoders = None if encoding is None else encoding.model_dump(mode="json")
    write_json(folder / FEATURES_FILE, {"encoders": encoders, "files": [str(path) for path in files]})


def read_features_file(folder: Path) -> Encoding | None:
    """Read the encoding from a run's folder; None if its features named none, or for old runs without this file.

    Raises `UserError` if the file is damaged.
    """
    path = folder / FEATURES_FILE
    try:
        encoders = read_own_json(path)["encoders"]
        return None if encoders is None else Encoding.model_validate(encoders)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: does not describe a run's encoders: {error}; fix or remove it") from None
