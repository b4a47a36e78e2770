"""How often a letter stands in a string, with a running tally."""

from __future__ import annotations

import random
import string
from typing import ClassVar

from rorqual.tasks.base import Problem
from rorqual.tasks.families.base import Family, FamilyKind

LETTERS = string.ascii_lowercase


class Count(Family):
    """`count s:hisses`: `h0i0s1s2e2s3 =3`. `difficulty` is the length of the string; the count is uniform over 0 to it."""

    name: ClassVar[str] = "count"
    kind: ClassVar[FamilyKind] = "text"
    easy: ClassVar[range] = range(3, 7)
    hard: ClassVar[range] = range(7, 12)

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        letter = rng.choice(LETTERS)
        others = LETTERS.replace(letter, "")
        count = rng.randint(0, difficulty)
        text = [letter] * count + [rng.choice(others) for _ in range(difficulty - count)]
        rng.shuffle(text)
        tally, words = 0, []
        for character in text:
            tally += character == letter
            words.append(f"{character}{tally}")
        question = f"{letter}:{''.join(text)}"
        return self.problem(
            difficulty, key=question, prompt=question, steps=f"{''.join(words)} ={count}", answer=str(count)
        )

    def size(self, difficulty: int) -> int:
        return 26 ** (difficulty + 1)

    def chance(self, problem: Problem) -> float:
        return 1 / (problem.meta["difficulty"] + 1)
