"""Count the occurrences of a letter in a string, with a running count."""

from __future__ import annotations

import math
import random
import string
from typing import ClassVar

from rorqual.tasks.families.family import Family
from rorqual.tasks.task import Problem

LETTERS = string.ascii_lowercase


class LetterCount(Family):
    """Letter counts: the steps of `count s:hsesh` are `sh0ss1se1ss2sh2 =2`.

    Each step consists of the counted letter, the next letter of the string, and the number of counted letters so far.

    `difficulty` is the length of the string. The count is uniform over 0 to 2 in easy strings and over 0 to 4 in hard
    strings. The number of distinct letters, without the counted letter, is always `difficulty` minus the highest count.
    Therefore the number of distinct letters does not reveal the count. Plain problems have strings of one to four random letters.

    Version 1 filled the string with random letters, so the number of distinct letters revealed the count.
    The steps of version 1 did not repeat the counted letter. A small model learned only this shortcut.
    """

    name: ClassVar[str] = "count"
    easy: ClassVar[range] = range(3, 7)
    hard: ClassVar[range] = range(7, 12)

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        most = self._max_count(difficulty)
        letter, *others = rng.sample(LETTERS, 1 + difficulty - most if difficulty else 4)
        if difficulty:
            count = rng.randint(0, most)
            text = [letter] * count + others + rng.choices(others, k=most - count)
            rng.shuffle(text)
        else:
            text = rng.choices([letter, *others], (3, 1, 1, 1), k=rng.randint(1, 4))
        tally, words = 0, []
        for character in text:
            tally += character == letter
            words.append(f"{letter}{character}{tally}")
        question = f"{letter}:{''.join(text)}"
        return self.problem(
            difficulty, key=question, prompt=question, steps=f"{''.join(words)} ={tally}", answer=str(tally)
        )

    def count_keys(self, difficulty: int) -> int:
        """Return a lower bound of the number of keys: the number of keys in which the counted letter occurs as often as
        possible. In these keys, each of the letters that are not counted occurs once."""
        others = difficulty - self._max_count(difficulty)
        return len(LETTERS) * math.comb(len(LETTERS) - 1, others) * math.perm(difficulty, others)

    def _max_count(self, difficulty: int) -> int:
        return 2 if difficulty in self.easy else 4
