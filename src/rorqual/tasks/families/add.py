"""Addition, digit by digit from the right, with the carry written out."""

from __future__ import annotations

import random
from typing import ClassVar

from rorqual.tasks.families.family import Family
from rorqual.tasks.task import Problem


class Add(Family):
    """Addition: the steps of `add 58+67` are `8+7+0=15 5+6+1=12 =125`. Each step adds two digits and the carry.

    Each of the two numbers has `difficulty` digits. The problems a+b and b+a share one key.
    """

    name: ClassVar[str] = "add"
    easy: ClassVar[range] = range(2, 4)
    hard: ClassVar[range] = range(4, 7)

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        low, high = 10 ** (difficulty - 1), 10**difficulty - 1
        a, b = rng.randint(low, high), rng.randint(low, high)
        return self.problem(
            difficulty, key=f"{min(a, b)}+{max(a, b)}", prompt=f"{a}+{b}", steps=_steps(a, b), answer=str(a + b)
        )

    def count_keys(self, difficulty: int) -> int:
        numbers = 9 * 10 ** (difficulty - 1)
        return numbers * (numbers + 1) // 2


def _steps(a: int, b: int) -> str:
    """Return the column additions, from right to left, as text.

    Each step adds two digits and the carry. The two digits of a step's result are the next carry and a digit of the
    sum.
    """
    words, carry, total = [], 0, ""
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        column = int(x) + int(y) + carry
        words.append(f"{x}+{y}+{carry}={column:02d}")
        carry, total = column // 10, f"{column % 10}{total}"
    return " ".join([*words, f"={carry or ''}{total}"])
