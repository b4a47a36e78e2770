"""Remainder of a long number divided by one digit, by long division."""

from __future__ import annotations

import random
from typing import ClassVar

from rorqual.tasks.base import Problem
from rorqual.tasks.families.base import Family, FamilyKind

DIVISORS = (7, 9)
"""Remainders by 7 and 9 depend on every digit. The last digits reveal those by 2, 4, 5, 8 and 10, and partly by 6."""


class Mod(Family):
    """`mod 4837%7`: `04%7=4 48%7=6 63%7=0 07%7=0 =0`. `difficulty` is the number of digits.

    Version 1 also divided by 6. There the parity of the last digit excludes three of six remainders.
    """

    name: ClassVar[str] = "mod"
    kind: ClassVar[FamilyKind] = "algorithm"
    easy: ClassVar[range] = range(2, 5)
    hard: ClassVar[range] = range(5, 9)
    version: ClassVar[int] = 2

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        number = str(rng.randint(10 ** (difficulty - 1), 10**difficulty - 1))
        divisor = rng.choice(DIVISORS)
        rest, words = 0, []
        for digit in number:
            after = (rest * 10 + int(digit)) % divisor
            words.append(f"{rest}{digit}%{divisor}={after}")
            rest = after
        question = f"{number}%{divisor}"
        return self.problem(
            difficulty, key=question, prompt=question, steps=" ".join([*words, f"={rest}"]), answer=str(rest)
        )

    def size(self, difficulty: int) -> int:
        return len(DIVISORS) * 9 * 10 ** (difficulty - 1)
