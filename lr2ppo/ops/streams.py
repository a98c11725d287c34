"""Two computations side by side on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """Let a GPU compute one thing beside another; anything else computes them one after the other."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Within the context, a GPU computes beside what follows it, until `join`."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        """Let what follows wait for what is computed beside it."""
        if self._stream is not None:
            torch.cuda.current_stream().wait_stream(self._stream)
