"""Where the shared reference data lie; a test that needs what is not there is skipped, and says what."""

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY


def shared(*parts: str) -> Path:
    """A file or folder of `shared/`, beside the repository."""
    path = REPOSITORY.parent.joinpath("shared", *parts)
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def golden(name: str) -> Path:
    """A file or folder of `shared/golden/`."""
    return shared("golden", name)
