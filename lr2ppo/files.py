"""Write files atomically: each is complete before it gets its name."""

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lr2ppo.errors import UserError

# JSON and the command line can hold lone surrogates and null characters; files and file names cannot.
UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name with `write(path)`, then rename it.

    Raises `UserError` if it cannot be written: the disk is full, read-only, or gone.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        os.close(handle)
        partial = Path(name)
        try:
            write(partial)
            partial.chmod(0o644)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: cannot be written: {reason}; earlier files are intact; free space or repair the disk, "
            "and run the same command again"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))
