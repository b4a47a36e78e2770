"""Remainder of a long number divided by one digit, by long division."""

from __future__ import annotations

import random
from typing import ClassVar

from rorqual.tasks.families.family import Family, random_form, random_number
from rorqual.tasks.task import Problem

DIVISORS = (7, 9)
"""Divisors whose remainders depend on every digit. For 2, 4, 5, 8 and 10, and partly for 6, the last digits reveal the remainder."""
PLAIN_DIVISORS = (2, 3, 5, 7, 9)
"""Divisors of plain problems. Each divisor has its own table of remainders, and a small model has no time to learn more tables."""


class Mod(Family):
    """Long division: the steps of `mod 4837%7` are `04%7=4 48%7=6 63%7=0 07%7=0 =0`.

    Each step appends the next digit to the last remainder and divides. `difficulty` is the number of digits. In
    plain problems, the number has one to four digits, and the divisor is one of `PLAIN_DIVISORS`.

    Version 1 also divided by 6, where the parity of the last digit excludes three of the six remainders.
    """

    name: ClassVar[str] = "mod"
    easy: ClassVar[range] = range(2, 5)
    hard: ClassVar[range] = range(5, 9)

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        number = str(random_number(rng, difficulty))
        divisor = rng.choice(DIVISORS if difficulty else PLAIN_DIVISORS)
        form, gap = random_form(rng, difficulty)
        remainder, words = 0, []
        for digit in number:
            after = (remainder * 10 + int(digit)) % divisor
            words.append(f"{remainder}{digit}%{divisor}={after}")
            remainder = after
        key, prompt, steps = f"{number}%{divisor}", f"{number}{gap}%{gap}{divisor}", " ".join([*words, f"={remainder}"])
        return self.problem(difficulty, key=key, prompt=prompt, steps=steps, answer=str(remainder), form=form)

    def count_keys(self, difficulty: int) -> int:
        return len(DIVISORS) * 9 * 10 ** (difficulty - 1)
