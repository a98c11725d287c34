"""Clip ids as names in a feature file, where slashes nest groups."""

import re
from reprlib import repr as shortened

from lr2ppo.files import UNWRITABLE

# The arrays in a clip's group; label_span and text_len may be missing.
CLIP_PARTS = ("text_len", "label_span", "text_emb", "img_emb")
LONGEST_ID = 1000
CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")


def id_fault(clip_id: str) -> str | None:
    """What is wrong with a clip's id, as `found ..., wanted ...`; None if it names one group and no other id does."""
    found = f"found {shortened(clip_id)}"
    parts = clip_id.split("/")
    if not clip_id.strip():
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
