"""A task of a million problems, or of one; any reply is right."""

from __future__ import annotations

import random
from collections.abc import Iterator

from rorqual.tasks.task import Problem, Split, Task, Verdict


class Numbers(Task):
    """`single`: the same problem without end."""

    name = "numbers"

    def __init__(self, single: bool = False) -> None:
        self.single = single

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"{seed} {split}")
        if self.single:
            if split == "train":
                yield Problem("7", "7", "8", "numbers")
            return
        while True:
            number = rng.randrange(10**6)
            yield Problem(str(number), str(number), str(number + 1), "numbers")

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return Verdict.RIGHT
