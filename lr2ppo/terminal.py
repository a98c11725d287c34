"""Text for a terminal, which names and labels of hostile files must not control."""

import sys
import unicodedata

# Format marks that join or separate letters and emoji.
JOINERS = "\u200c\u200d"


def printable(text: str) -> str:
    """Write control characters, and others that do not show, as Python's escapes; lines stay lines."""
    return "".join(each if _is_harmless(each) else repr(each)[1:-1] for each in text)


def one_line(text: str) -> str:
    """Write a text on one line, without control characters: where a line's end would start something else."""
    return printable(" ".join(text.split()))


def _is_harmless(character: str) -> bool:
    return character.isprintable() or character in f"\n{JOINERS}" or unicodedata.category(character) == "Zs"


def say(text: object = "", error: bool = False) -> None:
    """Print a text for people, at once: everything that a command prints passes through here, except JSON."""
    print(printable(str(text)), file=sys.stderr if error else sys.stdout, flush=True)
