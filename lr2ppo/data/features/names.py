"""Names that people give: clip ids, which a feature file uses too, and what they may have misspelt."""

import re
import unicodedata
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from functools import lru_cache
from reprlib import repr as shortened

from lr2ppo.files import CONTROL, UNWRITABLE

# The arrays in a clip's group; label_span and text_len may be missing.
CLIP_PARTS = ("text_len", "label_span", "text_emb", "img_emb")
LONGEST_ID = 1000
# How alike an unknown key and a known one are, from 0 to 1, if the one is taken for a mistake for the other.
ALIKE = 0.8
# Format marks that change what is seen: they join or separate letters and emoji, and make flags.
SHAPING = re.compile("[\u200c\u200d\U000e0020-\U000e007f]")
# Marks of other categories that show nothing themselves (Unicode's Default_Ignorable_Code_Point).
IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U00016fe4\U0001d159\U000e0080-\U000e0fff]"
)
# Joiners beside letters that do not join, and tags without a flag, show nothing either.
IDLE = re.compile(
    "(?<=[\0-\u02ff])[\u200c\u200d]|[\u200c\u200d](?=[\0-\u02ff])"
    "|(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0020-\U000e007f]+"
)
# A pattern of Braille without dots.
BLANK = "\u2800"


def id_fault(clip_id: str) -> str | None:
    """What is wrong with a clip's id, as `found ..., wanted ...`; None if it names one group and no other id does."""
    found = f"found {shortened(clip_id)}"
    parts = clip_id.split("/")
    if not as_seen(clip_id):
        return f"{found}, wanted a string that is not blank"
    if len(clip_id) > LONGEST_ID:
        return f"{found} of {len(clip_id):,} characters, wanted at most {LONGEST_ID:,}"
    if UNWRITABLE.search(clip_id) or CONTROL.search(clip_id):
        return f"{found}, wanted a string without control and invalid characters"
    # HDF5 ignores these parts, so that other ids name the same group.
    if "" in parts or "." in parts:
        return f"{found}, wanted more than a dot before, between and after slashes"
    if taken := set(parts).intersection(CLIP_PARTS):
        return f"{found}, wanted no part {taken.pop()}, which names an array of features"
    return None


def as_seen(text: str) -> str:
    """A text as people see it: texts that look the same are equal, whatever their blanks, accents and format marks."""
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    hidden = ("Cc", "Cf")
    marks = (each for each in text if unicodedata.category(each) not in hidden or each.isspace() or SHAPING.match(each))
    words = IGNORABLE.sub("", IDLE.sub("", "".join(marks))).replace(BLANK, " ").split()
    # At the edge of a word nothing is joined.
    return unicodedata.normalize("NFC", " ".join(filter(None, (word.strip("\u200c\u200d") for word in words))))


def found_in(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names that are among known ones, however these are spelled: see `as_seen`."""
    looks = set(map(as_seen, known))
    return [name for name in names if as_seen(name) in looks]


def misspelt(found: Collection[str], known: Collection[str]) -> tuple[str, str] | None:
    """The first key found that is almost a known one which is missing, and that one; None if there is none."""
    missing = tuple(key for key in known if key not in found)
    for key in found if missing else ():
        if key not in known and (near := _nearest(key.casefold(), missing)):
            return key, near[0]
    return None


# A file has the same few keys in each of its entries.
@lru_cache(maxsize=100)
def _nearest(key: str, known: tuple[str, ...]) -> list[str]:
    return get_close_matches(key, known, n=1, cutoff=ALIKE)
