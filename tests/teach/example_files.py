"""Rows of examples."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Write = Callable[[str, Sequence[dict[str, Any]]], Path]

WORDS = {"card": ("card", "chip", "plastic"), "pin": ("pin", "code", "digits"), "fee": ("fee", "charge", "cost")}


def labelled(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return different short texts with labels that one of their words decides."""
    draw = random.Random(seed)
    rows = {}
    while len(rows) < count:
        label = draw.choice(sorted(WORDS))
        text = f"{draw.choice(['my', 'the', 'a'])} {draw.choice(WORDS[label])} {draw.randrange(10_000)}"
        rows[text] = {"text": text, "label": label}
    return list(rows.values())


def sums(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return different one-step problems with their answers."""
    draw = random.Random(seed)
    rows = {}
    while len(rows) < count:
        a, b = draw.randint(20, 99), draw.randint(3, 19)
        rows[f"{a} and {b} more?"] = {"question": f"{a} and {b} more?", "answer": a + b}
    return list(rows.values())
