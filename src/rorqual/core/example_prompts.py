"""Example prompts of a run, chosen from its training problems. The example prompts are shown to the user and compared with
new prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence

MOST, LONGEST = 64, 200
"""Maximum number of example prompts of a run, and maximum number of characters in each prompt."""
FEW = 16
"""If the prompts of a run have at most `FEW` different first words, the prompts are assumed to have fixed forms, such as `add 12+34`."""
_WORD = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")


def choose_prompts(prompts: Sequence[str]) -> list[str]:
    """Return up to `MOST` example prompts of a run: one prompt for each distinct form, and then the remaining prompts. The first word and
    the punctuation characters are the form. All numbers count as one word."""
    short = [prompt for prompt in dict.fromkeys(prompts) if prompt.strip() and len(prompt) <= LONGEST]
    first = {_form(prompt): prompt for prompt in reversed(short)}
    leading = [prompt for prompt in short if first[_form(prompt)] == prompt]
    return [*leading, *(prompt for prompt in short if prompt not in leading)][:MOST]


def is_unlike_prompts(text: str, prompts: Sequence[str]) -> bool:
    """Return whether `text` is unlike all `prompts` that a run was trained on.

    If the prompts have fixed forms (`add 12+34`), `text` is like the prompts if all three conditions hold:

    - At least one prompt has the same first word as `text`.
    - `text` contains the punctuation characters that all prompts with this first word share.
    - Each punctuation character of `text` occurs in at least one prompt with this first word.

    If the prompts have no fixed forms, `text` is like the prompts if at least half of the words of `text` occur in the
    prompts.
    """
    words = _words(text)
    known = [found for found in map(_words, prompts) if found]
    if not known or not words:
        return False
    if len({found[0] for found in known}) <= FEW:
        marks = [_punctuation(found) for found in known if found[0] == words[0]]
        return not marks or not frozenset.intersection(*marks) <= _punctuation(words) <= frozenset.union(*marks)
    seen = {word for found in known for word in found}
    return sum(word in seen for word in words) < len(words) / 2


def _form(prompt: str) -> tuple[str, frozenset[str]]:
    return "".join(_words(prompt)[:1]), _punctuation(_words(prompt))


def _words(text: str) -> list[str]:
    return ["0" if word.isdigit() else word.lower() for word in _WORD.findall(text)]


def _punctuation(words: Sequence[str]) -> frozenset[str]:
    return frozenset(word for word in words if not word[0].isalnum())
