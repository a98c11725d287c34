"""Files that are complete before they take their name, and tensor files that are read without running any code."""

import json
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from lr2ppo.errors import UserError

# JSON and the command line can hold halves of characters and null characters, which no file and no file name can.
UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name with `write(path)`, and give it its own once it is complete.

    Raises `UserError` where the disk does not take it: full, read-only, or gone.
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
            f"{path}: cannot be written: {reason}; what was written before is whole: make room or repair the disk, "
            "and run the same command again"
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write JSON that is complete before it takes its name."""
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))
