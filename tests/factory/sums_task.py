"""A task of sums, in which every hundredth key is held out; some variants of it misbehave."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from rorqual.factory import FactoryConfig
from rorqual.tasks.task import Problem, Split, Task, Verdict

SUMS = f"{Path(__file__)}:Sums"
Make = Callable[..., FactoryConfig]
"""What the fixtures `local` and `remote` give: settings, with those that are named changed."""


class Sums(Task):
    """`limit` sums; each comes `repeats` times."""

    name = "sums"

    def __init__(self, limit: int = 40, repeats: int = 1) -> None:
        self.limit, self.repeats = limit, repeats

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        start = {"train": 0, "dev": 1000, "test": 2000}[split]
        for a in range(start, start + self.limit):
            problem = Problem(f"{a}+{a + 1}", f"What is {a} + {a + 1}?", str(a + a + 1), "sum", str(len(str(a))))
            yield from [problem] * self.repeats

    def grade(self, problem: Problem, reply: str) -> Verdict:
        if not reply.strip():
            return Verdict.UNGRADED
        return Verdict.RIGHT if reply.strip() == problem.answer else Verdict.WRONG


class Leaky(Sums):
    """Problem 3+4 stands in the test split too."""

    name = "leaky"

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        yield from super().problems(split, seed)
        if split == "test":
            yield Problem("3+4", "What is 3 + 4?", "7", "sum", "1", meta={"where": "test.jsonl:41"})


class Crashing(Sums):
    """Its grader fails on problem 2+3."""

    name = "crashing"

    def grade(self, problem: Problem, reply: str) -> Verdict:
        if problem.key == "2+3":
            raise ZeroDivisionError("by nothing")
        return super().grade(problem, reply)


class Drawn(Sums):
    """Of each split other problems by seed: of `train`, those from the seed on; the test split is the seed's second problem."""

    name = "drawn"

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        for a in (seed + 1,) if split == "test" else range(seed, seed + self.limit):
            yield Problem(f"{a}+{a + 1}", f"What is {a} + {a + 1}?", str(a + a + 1), "sum", "1")


class Mixed(Sums):
    """Even first numbers are of the family `even`, odd ones of `odd`."""

    name = "mixed"

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        for problem in super().problems(split, seed):
            yield replace(problem, family="odd" if int(problem.key.split("+")[0]) % 2 else "even")
