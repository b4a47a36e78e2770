"""A chain of operations modulo ten, from left to right."""

from __future__ import annotations

import random
from typing import ClassVar

from rorqual.tasks.families.family import Family
from rorqual.tasks.task import Problem

OPERATIONS = (*((op, n) for op in "+-" for n in range(1, 10)), ("*", 3), ("*", 7), ("*", 9))
"""The operations of a chain. The multipliers are invertible modulo ten, so that the answer is uniform over the ten digits."""


class OperationChain(Family):
    """Operations modulo ten: the steps of `chain 7+5*3-8` are `7+5=2 2*3=6 6-8=8`. `difficulty` is the number of operations."""

    name: ClassVar[str] = "chain"
    easy: ClassVar[range] = range(2, 5)
    hard: ClassVar[range] = range(5, 9)
    plain: ClassVar[int] = 2

    def sample(self, rng: random.Random, difficulty: int) -> Problem:
        start = rng.randrange(10)
        operations = [rng.choice(OPERATIONS) for _ in range(difficulty)]
        value, words = start, []
        for op, n in operations:
            after = (value + n if op == "+" else value - n if op == "-" else value * n) % 10
            words.append(f"{value}{op}{n}={after}")
            value = after
        first_op, first = operations[0]
        low, high = (start, first) if first_op == "-" else sorted((start, first))  # 3+7... and 7+3... share one key
        tail = "".join(f"{op}{n}" for op, n in operations[1:])
        return self.problem(
            difficulty,
            key=f"{low}{first_op}{high}{tail}",
            prompt=f"{start}{first_op}{first}{tail}",
            steps=" ".join(words),
            answer=str(value),
        )

    def count_keys(self, difficulty: int) -> int:
        first = {(op, *(sorted((a, n)) if op != "-" else (a, n))) for a in range(10) for op, n in OPERATIONS}
        return len(first) * len(OPERATIONS) ** (difficulty - 1)
