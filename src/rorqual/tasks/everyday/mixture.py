"""The everyday tasks as one mixture with equal shares, split by a hash of each problem's key."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Literal

from rorqual.core.errors import ConfigError
from rorqual.tasks.everyday.everyday_task import EverydayTask
from rorqual.tasks.everyday.prices import Prices
from rorqual.tasks.everyday.reviews import Reviews
from rorqual.tasks.everyday.sentences import Sentences
from rorqual.tasks.names import check_names
from rorqual.tasks.task import Problem, Split, Task, Verdict, split_of

EVERYDAY_TASKS: dict[str, EverydayTask] = {task.name: task for task in (Reviews(), Prices(), Sentences())}
DEV, TEST = 0.05, 0.1
"""Fractions of the problems that are in the dev and the test split. These fractions are higher than in other tasks, because
only 9,000 price problems exist."""
FRESH_TRIES = 50
"""After `FRESH_TRIES` consecutive samples without a new problem, a problem may repeat."""

Pool = Literal["any", "teacher", "original"]


class EverydayMixture(Task):
    """An endless mixture of the everyday tasks in `names`, with equal shares. Problems repeat only when unseen problems
    become rare.

    `pool` selects problems of the train split: the half `teacher`, the half `original`, or the whole train split (`any`). A
    teacher trains on the `teacher` half and labels the `original` half, so that a teacher cannot label from memory.
    `Problem.meta["original"]` is the noisy answer.

    Raises ConfigError for an unknown or repeated name, or an unknown pool.
    """

    name = "everyday"

    def __init__(self, names: Sequence[str] = tuple(EVERYDAY_TASKS), pool: Pool = "any") -> None:
        if pool not in ("any", "teacher", "original"):
            raise ConfigError(
                f"unknown pool '{pool}'", where="everyday.pool", remedy="Use pool=any, pool=teacher or pool=original."
            )
        self.tasks = [EVERYDAY_TASKS[name] for name in check_names(names, EVERYDAY_TASKS, "everyday.names")]
        self.pool = pool

    def problems(self, split: Split, seed: int) -> Iterator[Problem]:
        rng = random.Random(f"{seed} {split} {self.pool}")
        seen: set[str] = set()
        while True:
            for task in rng.sample(self.tasks, len(self.tasks)):
                yield self._unseen_problem(task, split, rng, seen)

    def _unseen_problem(self, task: EverydayTask, split: Split, rng: random.Random, seen: set[str]) -> Problem:
        tries = 0
        while True:
            problem = task.sample(rng)
            if self._key_is_in_split(problem.key, split):
                tries += 1
                if problem.key not in seen or tries > FRESH_TRIES:
                    seen.add(problem.key)
                    return task.with_noisy_answer(problem)

    def _key_is_in_split(self, key: str, split: Split) -> bool:
        if split_of(key, dev=DEV, test=TEST) != split:
            return False
        return split != "train" or self.pool == "any" or train_pool_of(key) == self.pool

    def grade(self, problem: Problem, reply: str) -> Verdict:
        return EVERYDAY_TASKS[problem.family].grade(problem, reply)

    def canonical_answer(self, problem: Problem, reply: str) -> str | None:
        return EVERYDAY_TASKS[problem.family].canonical_answer(problem, reply)


def train_pool_of(key: str) -> Pool:
    """Return the half of the train split that a problem belongs to."""
    return "teacher" if split_of(f"pool {key}", dev=0.0, test=0.5) == "test" else "original"
