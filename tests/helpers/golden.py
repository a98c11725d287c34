"""The reference tensors that the published implementation computed; tests/golden/README.md describes them."""

from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
