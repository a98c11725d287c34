"""Text for a terminal, which names and labels of hostile files must not control."""

import sys


def printable(text: str) -> str:
    """Write control characters, and others that do not show, as Python's escapes; lines stay lines."""
    return "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)


def say(text: object = "", error: bool = False) -> None:
    """Print a text for people, at once: everything that a command prints passes through here, except JSON."""
    print(printable(str(text)), file=sys.stderr if error else sys.stdout, flush=True)
