"""Regression: the price of a home from four numbers."""

from __future__ import annotations

import random
import re
from typing import ClassVar

from rorqual.tasks.everyday.everyday_task import EverydayTask, Form
from rorqual.tasks.task import Problem, Verdict

BASE = 18
WEIGHTS = {"rooms": 6, "age": -2, "garden": 2, "floor": 1}
LOW, HIGH = 0, 99
TOLERANCE = 3
"""A price is graded correct if its absolute error is at most `TOLERANCE`. The experiment `data-distil` also reports the mean
absolute error."""
DEVIATION = 12.0
NUMBER = re.compile(r"[0-9]{1,2}")


def price_of(reply: str) -> int | None:
    """Return the price that a reply states, or None.

    A price is one integer from 0 to 99 without a sign. White space around the integer is allowed.
    """
    text = reply.strip()
    return int(text) if NUMBER.fullmatch(text) else None


class Prices(EverydayTask):
    """Price problems such as `prices: rooms 4 age 7 garden 3 floor 2`. The price is 18 + 6 rooms - 2 age + 2 garden + floor."""

    name: ClassVar[str] = "prices"
    form: ClassVar[Form] = "regression"

    def sample(self, rng: random.Random) -> Problem:
        given = {name: rng.randint(1 if name == "rooms" else 0, 9) for name in WEIGHTS}
        price = BASE + sum(WEIGHTS[name] * value for name, value in given.items())
        text = " ".join(f"{name} {value}" for name, value in given.items())
        return self.problem(text, text, str(price))

    def corrupt(self, problem: Problem, rng: random.Random) -> str:
        return str(min(max(round(int(problem.answer) + rng.gauss(0, DEVIATION)), LOW), HIGH))

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        price = price_of(reply)
        return None if price is None else str(price)

    def grade(self, problem: Problem, reply: str) -> Verdict:
        price = price_of(reply)
        near = price is not None and abs(price - int(problem.answer)) <= TOLERANCE
        return Verdict.RIGHT if near else Verdict.WRONG
