"""Subtraction, digit by digit from the right, with the borrow written out."""

from __future__ import annotations

import random
from itertools import zip_longest
from typing import ClassVar

from rorqual.tasks.families.family import Family, random_form, random_number
from rorqual.tasks.task import Problem


class Sub(Family):
    """Subtraction: the steps of `sub 62-35` are `2-5-0=7b 6-3-1=2. =27`.

    Each of the two numbers has `difficulty` digits, and their difference is not negative. In plain problems, each number has one to
    four digits, and a missing digit of the shorter number counts as 0.
    `b` after a digit means that the step borrowed ten, so the next step subtracts 1. `.` after a digit means that the step
    borrowed nothing, so the next step subtracts 0.
    """

    name: ClassVar[str] = "sub"
    easy: ClassVar[range] = range(2, 4)
    hard: ClassVar[range] = range(4, 7)

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        b, a = sorted((random_number(rng, difficulty), random_number(rng, difficulty)))
        form, gap = random_form(rng, difficulty)
        key, prompt = f"{a}-{b}", f"{a}{gap}-{gap}{b}"
        return self.problem(difficulty, key=key, prompt=prompt, steps=_steps(a, b), answer=str(a - b), form=form)

    def count_keys(self, difficulty: int) -> int:
        numbers = 9 * 10 ** (difficulty - 1)
        return numbers * (numbers + 1) // 2


def _steps(a: int, b: int) -> str:
    words, borrow, difference = [], 0, ""
    for x, y in zip_longest(reversed(str(a)), reversed(str(b)), fillvalue="0"):
        column = int(x) - int(y) - borrow
        words.append(f"{x}-{y}-{borrow}={column % 10}{'b' if column < 0 else '.'}")
        borrow, difference = int(column < 0), f"{column % 10}{difference}"
    return " ".join([*words, f"={difference.lstrip('0') or '0'}"])
