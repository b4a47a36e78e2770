"""A task small enough to be half learned in a second: the letter after the one given."""

from __future__ import annotations

import random
from collections.abc import Iterator

from rorqual.tasks.task import Problem, Split, Task, Verdict

LETTERS = "abcdefghij"


class Letters(Task):
    """`after c` is answered by `d`; `raises`, `unsure` and `bad_gold` break it on purpose."""

    name = "letters"

    def __init__(self, raises: bool = False, unsure: bool = False, bad_gold: bool = False) -> None:
        self.raises, self.unsure, self.bad_gold = raises, unsure, bad_gold
        self.judged = 0

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"{seed} {split}")
        while split == "train":
            place = rng.randrange(len(LETTERS) - 1)
            steps = f"{LETTERS[place]}{LETTERS[place + 1]}"
            answer = "?" if self.bad_gold else LETTERS[place + 1]
            yield Problem(LETTERS[place], f"after {LETTERS[place]}", answer, "letters", steps=steps)

    def grade(self, problem: Problem, reply: str) -> Verdict:
        self.judged += 1
        if self.raises and reply != problem.answer:
            raise ValueError("no such letter")
        if self.unsure and self.judged % 3 == 0 and reply != problem.answer:
            return Verdict.UNGRADED
        return Verdict.RIGHT if reply == problem.answer and reply in LETTERS else Verdict.WRONG
