"""Example prompts of a run: problems that it was trained on, to show and to compare with."""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST, LONGEST = 64, 200
"""Maximum number of example prompts of a run, and of characters in each."""
FEW = 16
"""A run with at most this many different first words was trained on prompts of fixed forms."""
_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")


def chosen(prompts: Sequence[str]) -> list[str]:
    """Return the prompts to keep, short ones only, with different first words in front."""
    short = [prompt for prompt in dict.fromkeys(prompts) if prompt.strip() and len(prompt) <= LONGEST][:MOST]
    first = {prompt.split()[0]: prompt for prompt in reversed(short)}
    leading = [prompt for prompt in short if first[prompt.split()[0]] == prompt]
    return [*leading, *(prompt for prompt in short if prompt not in leading)]


def unlike(text: str, prompts: Sequence[str]) -> bool:
    """Return whether `text` looks like none of the `prompts` that a run was trained on.

    If the prompts have fixed forms (`add 12+34`), `text` must begin with the first word of one, and contain the punctuation
    that all prompts with this word share, and no other. Otherwise half of its words must occur in the prompts.
    """
    words = _words(text)
    known = [found for found in map(_words, prompts) if found]
    if not known or not words:
        return False
    if len({found[0] for found in known}) <= FEW:
        marks = [_marks(found) for found in known if found[0] == words[0]]
        return not marks or not frozenset.intersection(*marks) <= _marks(words) <= frozenset.union(*marks)
    seen = {word for found in known for word in found}
    return sum(word in seen for word in words) < len(words) / 2


def _words(text: str) -> list[str]:
    return ["0" if word.isdigit() else word.lower() for word in _WORD.findall(text)]


def _marks(words: Sequence[str]) -> frozenset[str]:
    return frozenset(word for word in words if not word[0].isalnum())
