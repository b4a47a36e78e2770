"""How often a letter stands in a string, with a running tally."""

from __future__ import annotations

import random
import string
from typing import ClassVar

from rorqual.tasks.base import Problem
from rorqual.tasks.families.base import Family, FamilyKind

LETTERS = string.ascii_lowercase


class Count(Family):
    """`count s:hssh`: `h0s1s2h2 =2`. `difficulty` is the length of a string of two letters; the count is uniform over 1 to one less than it.

    Version 1 filled the string with letters at random: how many different ones it had gave the count away.
    """

    name: ClassVar[str] = "count"
    kind: ClassVar[FamilyKind] = "text"
    easy: ClassVar[range] = range(3, 7)
    hard: ClassVar[range] = range(7, 12)
    version: ClassVar[int] = 2

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        letter, other = rng.sample(LETTERS, 2)
        count = rng.randint(1, difficulty - 1)
        text = [letter] * count + [other] * (difficulty - count)
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
        return 26 * 25 * (2**difficulty - 2)
