"""Greatest common divisor of several numbers by Euclid's algorithm, folded from the left."""

from __future__ import annotations

import math
import random
from typing import ClassVar

from rorqual.tasks.base import Problem
from rorqual.tasks.families.base import Family, FamilyKind

FIRST = (6, 8, 9)
OTHERS = range(10, 100)


class Gcd(Family):
    """`gcd 8 36 54`: `36%8=4 8%4=0 54%4=2 4%2=0 =2`. `difficulty` numbers of two digits follow one of one digit.

    Every remainder is by one digit, so that a step is a look-up and no computation is hidden. Pairs of small numbers would be
    too few for a million distinct problems. The divisor is uniform over those of the first number.
    """

    name: ClassVar[str] = "gcd"
    kind: ClassVar[FamilyKind] = "algorithm"
    easy: ClassVar[range] = range(1, 4)
    hard: ClassVar[range] = range(4, 7)

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        first = rng.choice(FIRST)
        divisor = rng.choice(_divisors(first))
        multiples = [n for n in OTHERS if n % divisor == 0]
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

    def size(self, difficulty: int) -> int:
        return len(FIRST) * math.comb(len(OTHERS), difficulty)

    def chance(self, problem: Problem) -> float:
        return 1 / len(_divisors(int(problem.prompt.split()[1])))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _steps(numbers: list[int]) -> str:
    current, *rest = numbers
    words: list[str] = []
    for number in rest:
        if current == 1:
            break
        larger = number
        while larger % current:
            words.append(f"{larger}%{current}={larger % current}")
            larger, current = current, larger % current
        words.append(f"{larger}%{current}=0")
    return " ".join([*words, f"={current}"])
