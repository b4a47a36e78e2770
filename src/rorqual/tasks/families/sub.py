"""Subtraction, digit by digit from the right, with the borrow written out."""

from __future__ import annotations

import random
from typing import ClassVar

from rorqual.tasks.families.family import Family
from rorqual.tasks.task import Problem


class Sub(Family):
    """Subtraction: the steps of `sub 62-35` are `2-5-0=7b 6-3-1=2. =27`.

    Each of the two numbers has `difficulty` digits, and their difference is not negative.
    `b` after a digit means that the step borrowed ten, so the next step subtracts 1. `.` after a digit means that the step
    borrowed nothing, so the next step subtracts 0.
    """

    name: ClassVar[str] = "sub"
    easy: ClassVar[range] = range(2, 4)
    hard: ClassVar[range] = range(4, 7)

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        low, high = 10 ** (difficulty - 1), 10**difficulty - 1
        b, a = sorted((rng.randint(low, high), rng.randint(low, high)))
        return self.problem(difficulty, key=f"{a}-{b}", prompt=f"{a}-{b}", steps=_steps(a, b), answer=str(a - b))

    def count_keys(self, difficulty: int) -> int:
        numbers = 9 * 10 ** (difficulty - 1)
        return numbers * (numbers + 1) // 2


def _steps(a: int, b: int) -> str:
    words, borrow, difference = [], 0, ""
    for x, y in zip(reversed(str(a)), reversed(str(b)), strict=True):
        column = int(x) - int(y) - borrow
        words.append(f"{x}-{y}-{borrow}={column % 10}{'b' if column < 0 else '.'}")
        borrow, difference = int(column < 0), f"{column % 10}{difference}"
    return " ".join([*words, f"={difference.lstrip('0') or '0'}"])
