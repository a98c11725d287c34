"""Write files beside the training: a GPU goes on while its results are written."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

# Held while a file is written, and while a GPU captures a step: the capture fails if another thread asks the GPU for
# anything, and what the libraries that write files ask is not known.
WRITING = Lock()


class Writer:
    """Write one file after another in a thread; at most one waits to be written."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._writing: Future[None] | None = None

    def start(self, write: Callable[[], None]) -> None:
        """Call `write` in the thread, after what was started before is finished."""
        self.wait()
        self._writing = self._thread.submit(_write, write)

    def wait(self) -> None:
        """Wait until all is written; raises what the writing raised."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()


def _write(write: Callable[[], None]) -> None:
    with WRITING:
        write()
