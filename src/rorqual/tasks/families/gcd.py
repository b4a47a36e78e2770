"""Greatest common divisor of several numbers by Euclid's algorithm, from left to right."""

from __future__ import annotations

import math
import random
from typing import ClassVar

from rorqual.tasks.families.family import Family
from rorqual.tasks.task import Problem

FIRST = (9, 27)
DIVISORS = (1, 3, 9)
OTHERS = range(10, 400)


class Gcd(Family):
    """Greatest common divisors: the steps of `gcd 27 36 39` are `36%27=9 27%9=0 39%9=3 9%3=0 =3`.

    The first number is 9 or 27, and `difficulty` numbers from 10 to 399 follow.

    The divisors of each step are small, so a model can memorize the result of each step. With only two small numbers
    per problem, there would be fewer than a million distinct problems. For each first number the answer is uniform over 1,
    3 and 9, and only the digit sums of the numbers reveal the answer.

    In version 1 the first number was 6, 8 or 9. The first number and the parity of the last number revealed part of the answer.
    """

    name: ClassVar[str] = "gcd"
    easy: ClassVar[range] = range(1, 4)
    hard: ClassVar[range] = range(4, 7)
    plain: ClassVar[int] = 1

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        first = rng.choice(FIRST)
        divisor = rng.choice(DIVISORS)
        multiples = [n for n in OTHERS if n % divisor == 0 and n != first]
        others = rng.sample(multiples, difficulty)
        while math.gcd(first, *others) != divisor:
            others = rng.sample(multiples, difficulty)
        numbers = [first, *others]
        return self.problem(
            difficulty,
            key=" ".join(map(str, sorted(numbers))),
            prompt=" ".join(map(str, numbers)),
            steps=_steps(numbers),
            answer=str(divisor),
        )

    def count_keys(self, difficulty: int) -> int:
        """Return the number of problems with first number 9, plus the number of problems with first number 27 that also contain a
        number that is no multiple of 27."""
        others = len(OTHERS)
        return (
            math.comb(others, difficulty)
            + math.comb(others - 1, difficulty)
            - math.comb(len(OTHERS[17::27]) - 1, difficulty)
        )


def _steps(numbers: list[int]) -> str:
    current, *others = numbers
    words: list[str] = []
    for number in others:
        if current == 1:
            break
        larger = number
        while larger % current:
            words.append(f"{larger}%{current}={larger % current}")
            larger, current = current, larger % current
        words.append(f"{larger}%{current}=0")
    return " ".join([*words, f"={current}"])
