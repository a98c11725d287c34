"""Broken files: how they are drawn and checked, in the short fuzz tests and in the long run of scripts/fuzz.sh.

A `Case` draws one broken input, writes it into a folder and checks what reads it. The short tests draw the same few
hundred in every run; `tests.reliability.fuzz` draws others each time.
"""

import copy
import gc
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st

from lr2ppo.errors import UserError

# Takes the folder to write into, the folder of the valid files that it damages, and the source of draws.
Case = Callable[[Path, Path, st.DataObject], None]
# How many inputs were read or refused, in this process.
OUTCOMES: Counter[str] = Counter()


def fuzzed(cases: int) -> settings:
    """Hypothesis settings of a fuzz test with `cases` cases."""
    return settings(
        max_examples=cases,
        derandomize=True,
        database=None,
        deadline=None,
        # A test overwrites the one file of its folder in each case.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )


@contextmanager
def may_refuse(*places: object) -> Iterator[None]:
    """Within the context, a `UserError` that names one of the places is accepted; any other error is raised."""
    try:
        yield
        count("read")
    except UserError as error:
        if not any(str(place) in str(error) for place in places):
            raise
        count("refused")


def count(outcome: str) -> None:
    event(outcome)
    OUTCOMES[outcome] += 1


def run_apart(check: Callable[[], object], seconds: int = 60) -> None:
    """Run a check in a separate process, which a library may crash; raise AssertionError if it fails or hangs."""
    status, output = _run_forked(check, seconds)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        # A process forked beside threads may hang by itself, if one of them held a lock; a check that hangs does again.
        status, output = _run_forked(check, seconds)
    assert status == 0, f"killed by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else output


def _run_forked(check: Callable[[], object], seconds: int) -> tuple[int, str]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 0
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        # What the parent left may wait for threads that are not here.
        gc.disable()
        torch.set_num_threads(1)
        try:
            check()
        except BaseException:
            os.write(writer, traceback.format_exc().encode()[-4000:])
            status = 1
        os._exit(status)
    os.close(writer)
    with open(reader, "rb") as pipe:
        output = pipe.read().decode()
    return os.waitpid(child, 0)[1], output


ODD_VALUES = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        1,
        3,
        2**31,
        2**70,
        0.5,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "2",
        "a\0b",
        "\ud800",
        "..",
        "/",
    ]
)
values = st.recursive(
    ODD_VALUES | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@st.composite
def mutated(draw: st.DrawFn, tree: Any) -> Any:
    """Draw a tree of lists and mappings with some values replaced, dropped, emptied or repeated."""
    tree = [copy.deepcopy(tree)]
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(tree))
        container, key = places[draw(st.integers(0, len(places) - 1))]
        action = draw(st.sampled_from(["replace", "drop", "empty", "repeat"]))
        if action == "drop" and container is not tree:
            del container[key]
        elif action == "empty":
            container[key] = type(container[key])()
        elif action == "repeat" and isinstance(container[key], list):
            container[key] = container[key] + copy.deepcopy(container[key])
        else:
            container[key] = draw(values)
    return tree[0]


def _places(container: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(container) if isinstance(container, dict) else range(len(container))
    for key in keys:
        yield container, key
        if isinstance(container[key], dict | list):
            yield from _places(container[key])


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw the content with some bytes changed, or missing at the end or in the middle."""
    kind = draw(st.sampled_from(["flip", "flip", "flip", "cut", "lose"]))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "lose":
        start = draw(st.integers(0, len(content) - 1))
        return content[:start] + content[start + draw(st.integers(1, 64)) :]
    changed = bytearray(content)
    for place in draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
        changed[place] = draw(st.integers(0, 255))
    return bytes(changed)
