"""Addition, digit by digit from the right, with the carry written out."""

from __future__ import annotations

import random
from itertools import zip_longest
from typing import ClassVar

from rorqual.tasks.families.family import Family, random_form, random_number
from rorqual.tasks.task import Problem


class Add(Family):
    """Addition: the steps of `add 58+67` are `8+7+0=15 5+6+1=12 =125`. Each step adds two digits and the carry.

    Each of the two numbers has `difficulty` digits. In plain problems, each number has one to four digits.
    The problems a+b and b+a share one key.
    """

    name: ClassVar[str] = "add"
    easy: ClassVar[range] = range(2, 4)
    hard: ClassVar[range] = range(4, 7)

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        a, b = random_number(rng, difficulty), random_number(rng, difficulty)
        form, gap = random_form(rng, difficulty)
        key, prompt = f"{min(a, b)}+{max(a, b)}", f"{a}{gap}+{gap}{b}"
        return self.problem(difficulty, key=key, prompt=prompt, steps=_steps(a, b), answer=str(a + b), form=form)

    def count_keys(self, difficulty: int) -> int:
        numbers = 9 * 10 ** (difficulty - 1)
        return numbers * (numbers + 1) // 2


def _steps(a: int, b: int) -> str:
    """Return the column additions, from right to left, as text.

    Each step adds two digits and the carry. The two digits of a step's result are the next carry and a digit of the
    sum. A missing digit of the shorter number counts as 0.
    """
    words, carry, total = [], 0, ""
    for x, y in zip_longest(reversed(str(a)), reversed(str(b)), fillvalue="0"):
        column = int(x) + int(y) + carry
        words.append(f"{x}+{y}+{carry}={column:02d}")
        carry, total = column // 10, f"{column % 10}{total}"
    return " ".join([*words, f"={carry or ''}{total}"])
