"""Find labels, such as True and False, in marked text and in replies."""

from __future__ import annotations

import re
from collections.abc import Sequence


def normalize_label(text: str) -> str:
    """Return `text` in lower case, with single spaces and without the punctuation at its beginning and end."""
    return " ".join(text.lower().split()).strip(" .,;:!?*_`\"'()[]{}$")


def matching_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the label that equals `text`, or None. Case, white space and punctuation are ignored."""
    return next((label for label in labels if normalize_label(label) == normalize_label(text)), None)


def last_label(text: str, labels: Sequence[str]) -> str | None:
    """Return the last label in `text`, or None. If two labels match at the same position, return the longer label."""
    names = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    found = re.findall(rf"(?<!\w)(?:{names})(?!\w)", text, re.IGNORECASE)
    return matching_label(found[-1], labels) if found else None
